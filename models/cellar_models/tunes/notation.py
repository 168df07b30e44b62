"""ABC as text: its tokens, and what keys and lengths mean.

Of ABC (Walshaw, standard 2.1) this takes what dance tunes use: notes, rests, lengths, accidentals, ties, triplets,
chord names, bars, repeats, first and second endings, fields like X, T, R, M, L, K. All else is refused.
"""

from __future__ import annotations

import re
from fractions import Fraction

# A time is counted in ticks, so that an eighth's quarter and its two thirds are whole numbers.
TICKS_PER_EIGHTH = 12
TOKEN = re.compile(
    r"""(?P<field>(?<![^\n])[A-Z]:(?![|:])[^\n]*\n)|(?P<chord>"[^"\n]*")|(?P<triplet>\(3)|(?P<ending>\[[12])
    |(?P<note>(?P<accidental>\^\^|__|[_^=])?(?P<letter>[A-Ga-gz])(?P<octave>[,']*)(?P<length>\d*(?:/\d*)*))
    |(?P<bar>:\|:|\|\|:|\|:|:\|\]?|::|\|\||\|\]|\|)|(?P<tie>-)|(?P<space>[ \n]+)""",
    re.VERBOSE,
)
CHORD = re.compile(r"([A-G][#b]?)(m7|m6|m|7b9|7|6|d|dim|)$")
KEY = re.compile(r"([A-G][#b]?)(m?)$")
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
# Semitones above the root that a chord's kind sounds.
CHORDS = {
    "": (0, 4, 7),
    "m": (0, 3, 7),
    "7": (0, 4, 7, 10),
    "m7": (0, 3, 7, 10),
    "6": (0, 4, 7, 9),
    "m6": (0, 3, 7, 9),
    "7b9": (0, 4, 7, 10, 13),
    "d": (0, 3, 6),
    "dim": (0, 3, 6),
}
ALTERATIONS = {"": 0, "#": 1, "b": -1, "^": 1, "_": -1, "=": 0, "^^": 2, "__": -2}
STARTS = frozenset({"|:", "||:", "::", ":|:"})
ENDS = frozenset({":|", ":|]", "::", ":|:"})
# Bars at which a section ends, so that the ones beside them may be short.
SECTIONS = STARTS | ENDS | {"||", "|]"}


class TuneError(ValueError):
    """A text is not a tune; the message says where and why."""


def tokens_of(text: str) -> list[str]:
    """The tokens of a text in their order; TuneError where one is unknown."""
    found, at = [], 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None or match.end() == at:
            raise TuneError(f"{text[at]!r} at character {at} is not understood")
        found.append(match[0])
        at = match.end()
    return found


def signature(key: str) -> dict[str, int]:
    """Sharps (1) and flats (-1) by letter of a major or minor (m) key; TuneError for another."""
    match = KEY.match(key)
    if not match:
        raise TuneError("the field K (key) is missing or wrong")
    # place on the circle of fifths, from C; a minor key has the signature of the major one three places on
    place = "FCGDAEB".index(match[1][0]) - 1 + 7 * ALTERATIONS[match[1][1:]] - (3 if match[2] else 0)
    if not -7 <= place <= 7:
        raise TuneError("the key has more than seven sharps or flats")
    sharps = {letter: 1 for letter in "FCGDAEB"[: max(place, 0)]}
    return sharps | {letter: -1 for letter in "BEADGCF"[: max(-place, 0)]}


def length_of(text: str) -> Fraction:
    """Units of a note's length as written: "" is 1, "3/2", "/" a half, "//" a quarter; TuneError."""
    match = re.fullmatch(r"(\d*)((?:/\d*)*)", text)
    assert match is not None
    length = Fraction(int(match[1] or 1))
    for part in match[2].split("/")[1:]:
        if part and int(part) == 0:
            raise TuneError("a length is divided by 0")
        length /= int(part or 2)
    if not 0 < length <= 64:
        raise TuneError(f"a length of {text} is out of range")
    return length
