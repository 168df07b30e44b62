"""ABC in, notes out; what is no tune is refused, and a bar that does not add up is found."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import tunes
from hypothesis import given
from hypothesis import strategies as st

HEAD = "X:1\nT:Jig\nR:jig\nM:6/8\nL:1/8\nK:D\n"


def pitches(body: str, head: str = HEAD) -> list[int]:
    return [note.pitch for note in tunes.parse(head + body).played()[0]]


def test_notes_have_the_keys_sharps_and_a_bars_accidentals() -> None:
    # F and C are sharp in D; the natural holds until the bar's end, in its own octave
    assert pitches("FCf=F Ff|F6|") == [66, 61, 78, 65, 65, 78, 66]
    assert pitches("_B^G,c'Bz2|", HEAD.replace("K:D", "K:C")) == [70, 56, 84, 70]


@pytest.mark.parametrize(
    ("key", "expected"),
    [("C", {}), ("D", {"F": 1, "C": 1}), ("Bb", {"B": -1, "E": -1}), ("Em", {"F": 1}), ("Gm", {"B": -1, "E": -1})],
)
def test_signatures(key: str, expected: dict[str, int]) -> None:
    assert tunes.signature(key) == expected


def test_lengths_ties_and_triplets() -> None:
    notes, _, length = tunes.parse(HEAD + "A/A3/2A2-A2|(3ABcd4|").played()
    assert [note.length for note in notes] == [6, 18, 48, 8, 8, 8, 48]
    assert length == 144
    assert [note.start for note in notes] == [0, 6, 24, 72, 80, 88, 96]


def test_repeats_and_endings_are_played_out() -> None:
    assert pitches("|:D6|[1E6:|[2F6||") == [62, 64, 62, 66]
    assert pitches("D6:|E6::F6:|") == [62, 62, 64, 64, 66, 66]


def test_chords_stand_where_they_are_written() -> None:
    _, chords, _ = tunes.parse(HEAD + '"D"A3"A7"A3|"Bm"A6|').played()
    assert [(chord.start, chord.root, chord.intervals) for chord in chords] == [
        (0, 50, (0, 4, 7)),
        (36, 57, (0, 4, 7, 10)),
        (72, 59, (0, 3, 7)),
    ]


@pytest.mark.parametrize(
    "body",
    [
        "A6|B6|",
        "A|B6|A5:|",
        "A|B6|A5||c|B6|A5|]",
        "A2|B6|[1A4:|[2A4||",
        # a pick-up before the repeat's beginning
        "A|:B6|A5:|",
    ],
)
def test_a_tune_whose_bars_add_up_has_no_problems(body: str) -> None:
    assert tunes.parse(HEAD + body).problems() == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("A6|B5|A6|", "section 1, bar 2 has 60 ticks of 72"),
        ("A6|B7|A6|", "section 1, bar 2 has 84 ticks of 72"),
        ("A|B6|A6|A4||", "section 1, bar 4 has 48 ticks of 72"),
        ("A6|B6", "the last bar is not closed"),
        ("A6|[1B6:|A6|", "endings do not alternate"),
    ],
)
def test_what_does_not_add_up_is_found(body: str, problem: str) -> None:
    assert any(problem in each for each in tunes.parse(HEAD + body).problems())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A6|", "metre"),
        ("M:6/8\nA6|", "key"),
        ("M:0/8\nK:D\nA6|", "metre"),
        (HEAD, "no notes"),
        (HEAD + "A6|h6|", "'h' at character"),
        (HEAD + '"Q"A6|', "chord"),
        (HEAD + "(3AB|c6|", "triplet"),
        (HEAD + "A/0|", "divided by 0"),
        (HEAD + "A/64|", "too fine"),
        (HEAD + "c''''''6|", "out of range"),
        (HEAD + "-A6|", "tie"),
        (HEAD + '"D"|A6|', "no notes"),
        (HEAD + "A6|\nK:G\nA6|", "behind notes"),
        (HEAD + "A|" * 600, "more than 512 bars"),
    ],
)
def test_what_is_no_tune_is_refused(text: str, problem: str) -> None:
    with pytest.raises(tunes.TuneError, match=problem):
        tunes.parse(text)


@given(st.text(alphabet="ABcdz^=_,'/23()[]|:-\" \nGm7", max_size=60))
def test_any_text_is_a_tune_or_a_tune_error(body: str) -> None:
    try:
        tune = tunes.parse(HEAD + body)
    except tunes.TuneError:
        return
    tune.problems()
    notes, _, length = tune.played()
    assert all(0 <= note.start < note.start + note.length <= length for note in notes)


@given(st.lists(st.sampled_from(["A", "^c", "d2", "e/2", "|", ":|", "||", '"D"', "(3", " ", "\n"]), max_size=30))
def test_tokens_of_a_text_make_it_again(words: list[str]) -> None:
    text = "".join(words)
    assert "".join(tunes.tokens_of(text)) == text
