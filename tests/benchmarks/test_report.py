"""The page of results, and what the command line asks for."""

import pytest

from benchmarks.__main__ import parse, scale, servers
from benchmarks.ratios import ratio_of, rounds
from benchmarks.report import Line, page, updated
from benchmarks.workloads import WORKLOADS


def test_rounds_go_forwards_and_backwards_after_one_that_is_not_counted():
    calls = []
    arms = {name: (lambda name=name: calls.append(name) or float(len(calls))) for name in "ABC"}
    measured = rounds(arms, 2)
    assert calls == list("ABCABCCBA")
    assert measured == {"A": [4.0, 9.0], "B": [5.0, 8.0], "C": [6.0, 7.0]}


def test_ratios_are_taken_round_by_round():
    assert ratio_of([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]).median == 2.0
    with pytest.raises(ValueError, match="pair"):
        ratio_of([1.0], [])


@pytest.mark.parametrize(
    ("ratio", "aims", "said"),
    [
        (0.9, {"at_least": 0.85}, ">= 0.85: reached"),
        (0.8, {"at_least": 0.85}, ">= 0.85: **missed**"),
        (1.5, {"at_most": 1.6}, "<= 1.6: reached"),
        (1.7, {"at_most": 1.6}, "<= 1.6: **missed**"),
        (None, {"at_least": 0.5}, ">= 0.5"),
        (0.5, {}, ""),
        (ratio_of([3.0], [2.0]), {"at_least": 1.5}, ">= 1.5: reached"),
    ],
)
def test_an_aim_is_reached_by_the_median_or_said_to_be_missed(ratio, aims, said):
    assert Line("m", "a", "f", ratio=ratio, **aims).cells()[-1] == said


def test_the_page_has_a_table_a_section():
    text = page({"First": [Line("m", "a", "f", "b", 0.5)], "Second": []}, ["noted"])
    assert "| m | a | f | b | 0.50 |  |" in text
    assert text.count("| measured |") == 2
    assert "## First\n\n*" in text
    assert text.endswith("- noted\n")


def test_a_page_is_updated_section_by_section():
    def line(said):
        return [Line("m", "a", said)]

    old = page({"First": line("old 1"), "Second": line("old 2")}, ["old note"])
    new = updated(old, page({"Second": line("new 2"), "Third": line("new 3")}, ["new note"]))
    assert [title for title in ("old 1", "old 2", "new 2", "new 3", "old note", "new note") if title in new] == [
        "old 1",
        "new 2",
        "new 3",
        "new note",
    ]
    assert new.index("## First") < new.index("## Second") < new.index("## Third")
    assert updated("", old) == old == updated(old, old)


def test_servers_are_named_by_their_flags():
    assert servers([]) == {"Cellar": []}
    assert servers(["--spin true"]) == {"Cellar": ["--spin", "true"]}
    assert servers(["one=", "two=--intra-op=2 --spin true"]) == {"one": [], "two": ["--intra-op=2", "--spin", "true"]}
    with pytest.raises(ValueError, match="two servers"):
        servers(["a=", "a=--spin true"])


def test_a_look_is_shorter_and_what_is_given_counts():
    full, short, quick = (scale(parse(given)) for given in ([], ["--short"], ["--quick"]))
    assert full.num_pairs >= 30 > short.num_pairs > quick.num_pairs
    assert scale(parse(["--quick", "--pairs", "7", "--held-s", "9"])).num_pairs == 7
    assert scale(parse(["--held-s", "9"])).held_s == 9


def test_all_workloads_are_run_unless_some_are_named():
    assert parse([]).only == list(WORKLOADS)
    assert parse(["--only", "frames", "memory"]).only == ["frames", "memory"]
