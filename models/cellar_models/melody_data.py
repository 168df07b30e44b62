"""The tunes that `melody` learns from: read, written anew in one way, split, and moved to other keys."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from cellar_models import tunes
from cellar_models.data import read

SHA256 = "883f4c10aacd7b7bb5287abd94578b1da0168138e674f4c427c31d203b7b3d0c"
# Ids of every vocabulary.
BEGIN, END = 0, 1
GENRES = ("reel", "jig", "hornpipe", "waltz")
# Keys that tunes are moved to, and how far from their own, in fifths.
KEYS = {"": ("C", "G", "D", "A", "F"), "m": ("Am", "Em", "Dm", "Bm", "Gm")}
SPLIT_SEED = 7
# The lowest and highest pitch that a moved tune may reach: G below the middle C, and the D two octaves above it.
LOWEST, HIGHEST = 55, 86
_LETTERS = "CDEFGAB"


@dataclass(frozen=True)
class Example:
    """A tune as it is learnt: its genre and its text from the field M on."""

    genre: str
    metre: str
    key: str
    body: str

    @property
    def text(self) -> str:
        """The whole tune in ABC."""
        return f"{opening(self.genre)}M:{self.metre}\nL:1/8\nK:{self.key}\n{self.body}"

    @property
    def tokens(self) -> list[str]:
        """The tune's tokens; the genre's field comes first as one, then metre and unit as one."""
        return [
            opening(self.genre),
            f"M:{self.metre}\nL:1/8\n",
            f"K:{self.key}\n",
            *tunes.tokens_of(self.body),
        ]


def opening(genre: str) -> str:
    """What a tune of a genre begins with."""
    return f"X:1\nT:{genre.capitalize()}\nR:{genre}\n"


def load(data: Path) -> tuple[list[Example], int]:
    """The tunes of the four genres that can be read and whose bars add up, no body twice; and how many were refused."""
    lines = read(data, "melody_nottingham", "tunes.tsv", SHA256).splitlines()[1:]
    found: dict[str, Example] = {}
    num_refused = 0
    for line in lines:
        genre, _, _, _, metre, key, unit, abc = line.split("\t")
        if genre not in GENRES:
            continue
        try:
            example = Example(genre, metre, key, written_anew(abc, unit or "1/8"))
            example = replace(example, body=_with_section_lines(example))
            problems = tunes.parse(example.text).problems()
        except tunes.TuneError as error:
            problems = [str(error)]
        if problems:
            num_refused += 1
        else:
            found.setdefault(example.body, example)
    return list(found.values()), num_refused


def split(examples: list[Example]) -> dict[str, list[Example]]:
    """A tenth of each genre is held out for test, another for validation, by SPLIT_SEED."""
    rng = np.random.default_rng(SPLIT_SEED)
    parts: dict[str, list[Example]] = {"train": [], "valid": [], "test": []}
    for genre in GENRES:
        of_genre = [each for each in examples if each.genre == genre]
        order = rng.permutation(len(of_genre))
        tenth = len(of_genre) // 10
        for place, i in enumerate(order):
            part = "test" if place < tenth else "valid" if place < 2 * tenth else "train"
            parts[part].append(of_genre[i])
    return parts


def written_anew(abc: str, unit: str) -> str:
    """A body of the data with its notes in eighths and without what is not learnt: part marks (a section's end stands
    for them), slurs, ornaments, a chord's bass note, and all but the highest of notes that sound together."""
    text = abc.replace("\\\\n", "\n").replace("\\n", "\n")
    text = re.sub(r"\|?\s*\n?P:[A-Z]\d?\s*\n", lambda m: "||\n" if m[0][0] == "|" else "\n", text)
    text = re.sub(r":\|+\s*\n", ":|\n", text)
    text = re.sub(r"![a-z]+!|~|\((?![23456])|\)", "", text)
    text = re.sub(r"\[([_^=A-Ga-g,'/0-9]+)\]", lambda m: _highest(m[1]), text)
    text = re.sub(r'"\(?([A-G][#b]?(?:m7|m|7|6|d|))[^"]*"', r'"\1"', text)
    text = text.replace('" "', "").replace("][", "[")
    scale = Fraction(unit) * 8
    made = []
    for token in tunes.tokens_of(text):
        match = tunes.TOKEN.match(token)
        assert match is not None
        if match["note"]:
            name = token[: len(token) - len(match["length"])]
            made.append(name + _written(tunes.length_of(match["length"]) * scale))
        elif match["space"]:
            made.append("\n" if "\n" in token else " ")
        elif not match["field"]:
            made.append(token)
    return "".join(made).strip()


def _with_section_lines(example: Example) -> str:
    """The body with `||` where the data end a section by `|` alone: behind a bar that lacks just its section's pick-up,
    and behind the last one."""
    made, ticks, bar_ticks, pick_up = [], 0, tunes.parse(example.text).bar_ticks, None
    in_triplet = 0
    tokens = tunes.tokens_of(example.body)
    for i, token in enumerate(tokens):
        match = tunes.TOKEN.match(token)
        assert match is not None
        if match["note"]:
            length = tunes.length_of(match["length"]) * tunes.TICKS_PER_EIGHTH
            ticks += int(length * 2 / 3 if in_triplet else length)
            in_triplet = max(0, in_triplet - 1)
        elif match["triplet"]:
            in_triplet = 3
        elif match["bar"]:
            is_last = not any((found := tunes.TOKEN.match(each)) and found["note"] for each in tokens[i + 1 :])
            if pick_up is None and ticks:
                pick_up = ticks if ticks < bar_ticks else 0
            elif token == "|" and (is_last or (pick_up and ticks == bar_ticks - pick_up)):
                token = "||"
            if token in tunes.SECTIONS:
                pick_up = None
            ticks = 0
        made.append(token)
    return "".join(made)


def _highest(notes: str) -> str:
    found = [m for m in tunes.TOKEN.finditer(notes) if m["note"]]

    def height(match: re.Match[str]) -> int:
        letter = match["letter"]
        return tunes.SEMITONES[letter.upper()] + 12 * (
            letter.islower() + match["octave"].count("'") - match["octave"].count(",")
        )

    return max(found, key=height)[0]


def _written(length: Fraction) -> str:
    over = "" if length.numerator == 1 else str(length.numerator)
    under = {1: "", 2: "/"}.get(length.denominator, f"/{length.denominator}")
    return over + under if under != "/" or not over else f"{over}/2"


def moved(example: Example, key: str) -> Example | None:
    """The tune in another key of the same kind, as high or low as fits; None where it does not fit."""
    here, there = tunes.signature(example.key), tunes.signature(key)
    steps = _LETTERS.index(key[0]) - _LETTERS.index(example.key[0])
    for shift in (steps, steps - 7, steps + 7):
        if abs(shift) > 4:
            continue
        made = []
        for token in tunes.tokens_of(example.body):
            match = tunes.TOKEN.match(token)
            assert match is not None
            moved_token: str | None = token
            if match["note"] and match["letter"] != "z":
                moved_token = _moved_note(match, shift, here, there)
            elif match["chord"]:
                moved_token = _moved_chord(token, steps, example.key, key)
            if moved_token is None:
                return None
            made.append(moved_token)
        found = Example(example.genre, example.metre, key, "".join(made))
        pitches = [note.pitch for note in tunes.parse(found.text).played()[0]]
        if min(pitches) >= LOWEST and max(pitches) <= HIGHEST:
            return found
    return None


def _moved_note(match: re.Match[str], shift: int, here: dict[str, int], there: dict[str, int]) -> str | None:
    letter = match["letter"].upper()
    octave = match["letter"].islower() + match["octave"].count("'") - match["octave"].count(",")
    place = _LETTERS.index(letter) + 7 * octave + shift
    octave, name = place // 7, _LETTERS[place % 7]
    mark = ""
    if match["accidental"]:
        altered = tunes.ALTERATIONS[match["accidental"]] - here.get(letter, 0) + there.get(name, 0)
        if abs(altered) > 1:
            return None
        mark = {0: "=", 1: "^", -1: "_"}[altered]
    text = name.lower() + "'" * (octave - 1) if octave > 0 else name + "," * -octave
    return mark + text + match["length"]


def _moved_chord(token: str, steps: int, here: str, there: str) -> str | None:
    match = tunes.CHORD.match(token[1:-1])
    if match is None:
        return None
    signs = {"#": 1, "b": -1, "": 0}
    name = _LETTERS[(_LETTERS.index(match[1][0]) + steps) % 7]
    altered = signs[match[1][1:]] - tunes.signature(here).get(match[1][0], 0) + tunes.signature(there).get(name, 0)
    if abs(altered) > 1:
        return None
    return f'"{name}{ {0: "", 1: "#", -1: "b"}[altered] }{match[2]}"'


def in_all_keys(example: Example) -> list[Example]:
    """The tune as it is, and in each other key that it can be moved to."""
    keys = KEYS["m" if example.key.endswith("m") else ""]
    return [example, *filter(None, (moved(example, key) for key in keys if key != example.key))]


def ids_of(words: list[str], example: Example) -> list[int] | None:
    """Ids of the tune's tokens in a vocabulary, from begin to end; None where one is not in it."""
    place = {word: i for i, word in enumerate(words)}
    tokens = example.tokens
    return [BEGIN, *(place[token] for token in tokens), END] if all(token in place for token in tokens) else None


def condition_of(genre: str) -> np.ndarray:
    """float32 [4]."""
    return np.eye(len(GENRES), dtype=np.float32)[GENRES.index(genre)]
