"""Tunes in ABC: from text to tokens, from tokens to notes with their times, and what is wrong with a tune.

Of ABC (Walshaw, standard 2.1) this takes what dance tunes use: notes, rests, lengths, accidentals, ties, triplets,
chord names, bars, repeats, first and second endings, fields like X, T, R, M, L, K. All else is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
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
# Times that a section may be gone through is two; more bars than this are no tune.
MAX_BARS = 512


class TuneError(ValueError):
    """A text is not a tune; the message says where and why."""


@dataclass(frozen=True)
class Note:
    """A note that sounds: start and length in ticks, pitch as MIDI counts (60 is the middle C)."""

    start: int
    length: int
    pitch: int


@dataclass(frozen=True)
class Chord:
    """A chord name: from `start` (ticks) until the next one; root as MIDI counts, and the semitones above it."""

    start: int
    root: int
    intervals: tuple[int, ...]


@dataclass
class Bar:
    """What stands between two bar lines: events as (note or chord, ticks from the bar's start), and the lines."""

    opened_by: str
    closed_by: str = ""
    ticks: int = 0
    notes: list[tuple[int, int, int | None, bool]] = field(default_factory=list)  # start, length, pitch, is tied on
    chords: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)
    ending: str = ""


@dataclass(frozen=True)
class Tune:
    """A tune as read. metre: (beats, beat's part of a whole); key: as in the field; rhythm: the field R."""

    title: str
    rhythm: str
    metre: tuple[int, int]
    key: str
    bars: list[Bar]

    @property
    def bar_ticks(self) -> int:
        return self.metre[0] * 8 * TICKS_PER_EIGHTH // self.metre[1]

    def problems(self) -> list[str]:
        """What is wrong with the bars' lengths and the repeats; empty for a tune that can be danced to.

        Every bar is as long as the metre says, but for the two at a section's ends: a section may begin with a shorter
        pick-up, and its last bar may be short by just that pick-up or by the next section's. A tune ends at a bar line,
        every `:|` has notes before it, and a first ending has a second.
        """
        found = []
        if self.bars[-1].closed_by == "":
            found.append("the last bar is not closed")
        sections = _sections(self.bars, self.bar_ticks)
        pick_ups = [_pick_up(section, self.bar_ticks) for section in sections]
        for s, section in enumerate(sections):
            allowed = {0, pick_ups[s], pick_ups[s + 1] if s + 1 < len(sections) else pick_ups[0]}
            for i, bar in enumerate(section):
                if bar.ticks == self.bar_ticks or (i == 0 and bar.ticks == pick_ups[s]):
                    continue
                is_last = i == len(section) - 1 or bar.closed_by in SECTIONS
                if not (is_last and self.bar_ticks - bar.ticks in allowed):
                    found.append(f"section {s + 1}, bar {i + 1} has {bar.ticks} ticks of {self.bar_ticks}")
        endings = [bar.ending for bar in self.bars if bar.ending]
        if endings != ["1", "2"] * (len(endings) // 2):
            found.append("first and second endings do not alternate")
        return found

    def played(self) -> tuple[list[Note], list[Chord], int]:
        """Notes and chords with repeats and endings played out, ties joined; and the whole length in ticks."""
        notes: list[Note] = []
        chords: list[Chord] = []
        at, tied = 0, False
        for bar in _unrolled(self.bars):
            for start, length, pitch, is_tied in bar.notes:
                if pitch is None:
                    tied = False
                    continue
                last = notes[-1] if notes else None
                if tied and last and last.pitch == pitch and last.start + last.length == at + start:
                    notes[-1] = Note(last.start, last.length + length, pitch)
                else:
                    notes.append(Note(at + start, length, pitch))
                tied = is_tied
            chords += [Chord(at + start, root, intervals) for start, root, intervals in bar.chords]
            at += bar.ticks
        return notes, chords, at


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


def parse(text: str) -> Tune:
    """A tune with its fields M and K (and, if there, X, T, R, L) before its notes; TuneError."""
    fields = {"L": "1/8", "T": "", "R": ""}
    reader: _Reader | None = None
    for token in tokens_of(text.strip() + "\n"):
        match = TOKEN.match(token)
        assert match is not None
        if match["field"]:
            if reader is not None:
                raise TuneError(f"the field {token.strip()} stands behind notes")
            if token[0] not in "XTRMLKCSNZQ":
                raise TuneError(f"the field {token[0]} is not known")
            fields[token[0]] = token[2:].split("%")[0].strip()
            continue
        if reader is None:
            if match["space"]:
                continue
            reader = _Reader(_signature(fields), _unit(fields["L"]))
        reader.take(match)
    if reader is None or not any(bar.notes for bar in reader.bars):
        raise TuneError("there are no notes")
    reader.close()
    return Tune(fields["T"], fields["R"], _metre(fields), fields["K"], reader.bars)


def _metre(fields: dict[str, str]) -> tuple[int, int]:
    text = {"C": "4/4", "C|": "2/2"}.get(fields.get("M", ""), fields.get("M", ""))
    if not re.fullmatch(r"[1-9]\d?/(1|2|4|8|16)", text):
        raise TuneError("the field M (metre) is missing or wrong")
    beats, part = text.split("/")
    return int(beats), int(part)


def _unit(text: str) -> int:
    if not re.fullmatch(r"1/(2|4|8|16)", text):
        raise TuneError("the field L (unit of length) is wrong")
    return 8 * TICKS_PER_EIGHTH // int(text[2:])


def _signature(fields: dict[str, str]) -> dict[str, int]:
    _metre(fields)
    return signature(fields.get("K", ""))


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


class _Reader:
    """Takes tokens one by one and makes bars."""

    def __init__(self, key: dict[str, int], unit: int) -> None:
        self.key, self.unit = key, unit
        self.bars = [Bar(opened_by="")]
        self.accidentals: dict[str, int] = {}
        self.in_triplet = 0

    def take(self, match: re.Match[str]) -> None:
        bar = self.bars[-1]
        if match["note"]:
            self._note(bar, match)
        elif match["bar"]:
            if self.in_triplet:
                raise TuneError("a bar line cuts a triplet")
            self.accidentals = {}
            if bar.ticks == 0:  # two lines with nothing between them are one, as at a line's end
                if bar.chords or bar.ending:
                    raise TuneError("a bar has no notes")
                bar.opened_by = _joined(bar.opened_by, match[0])
                if len(self.bars) > 1:
                    self.bars[-2].closed_by = bar.opened_by
            else:
                bar.closed_by = match[0]
                self.bars.append(Bar(opened_by=match[0]))
            if len(self.bars) > MAX_BARS:
                raise TuneError(f"there are more than {MAX_BARS} bars")
        elif match["chord"]:
            named = CHORD.match(match[0][1:-1])
            if not named:
                raise TuneError(f"the chord {match[0]} is not known")
            root = SEMITONES[named[1][0]] + ALTERATIONS[named[1][1:]]
            bar.chords.append((bar.ticks, 48 + root % 12, CHORDS[named[2]]))
        elif match["triplet"]:
            if self.in_triplet:
                raise TuneError("a triplet in a triplet")
            self.in_triplet = 3
        elif match["tie"]:
            if not bar.notes or bar.notes[-1][2] is None or self.in_triplet == 3:
                raise TuneError("a tie without a note before it")
            bar.notes[-1] = (*bar.notes[-1][:3], True)
        elif match["ending"]:
            if bar.ticks or bar.ending:
                raise TuneError("an ending within a bar")
            bar.ending = match[0][1]

    def _note(self, bar: Bar, match: re.Match[str]) -> None:
        ticks = length_of(match["length"]) * self.unit
        if self.in_triplet:
            ticks, self.in_triplet = ticks * 2 / 3, self.in_triplet - 1
        if ticks.denominator != 1:
            raise TuneError(f"the length of {match[0]} is too fine")
        letter, octave = match["letter"], match["octave"]
        if letter == "z":
            if match["accidental"] or octave:
                raise TuneError(f"{match[0]} is no rest")
            pitch = None
        else:
            height = 60 + SEMITONES[letter.upper()] + 12 * (letter.islower() + octave.count("'") - octave.count(","))
            place = letter + octave
            if match["accidental"]:
                self.accidentals[place] = ALTERATIONS[match["accidental"]]
            pitch = height + self.accidentals.get(place, self.key.get(letter.upper(), 0))
            if not 21 <= pitch <= 108:
                raise TuneError(f"{match[0]} is out of range")
        bar.notes.append((bar.ticks, int(ticks), pitch, False))
        bar.ticks += int(ticks)

    def close(self) -> None:
        if self.in_triplet:
            raise TuneError("the last triplet is not whole")
        if self.bars[-1].ticks == 0:
            if self.bars[-1].chords or self.bars[-1].ending:
                raise TuneError("the last bar has no notes")
            self.bars.pop()


def _joined(one: str, other: str) -> str:
    """Two bar lines that stand side by side, as one."""
    if not one:
        return other
    is_end, is_start = one in ENDS or other in ENDS, one in STARTS or other in STARTS
    if is_end and is_start:
        return "::"
    return ":|" if is_end else "|:" if is_start else "||"


def _sections(bars: list[Bar], bar_ticks: int) -> list[list[Bar]]:
    """Bars between two section lines; a second ending belongs to its first one's section, a lone short bar to the
    section that it leads into."""
    made: list[list[Bar]] = [[]]
    for bar in bars:
        is_lead = len(made[-1]) == 1 and made[-1][0].ticks < bar_ticks
        if made[-1] and bar.opened_by in SECTIONS and bar.ending != "2" and not is_lead:
            made.append([])
        made[-1].append(bar)
    return made


def _pick_up(section: list[Bar], bar_ticks: int) -> int:
    """Ticks of a section's first bar where it is short and another follows, else 0."""
    return section[0].ticks if len(section) > 1 and section[0].ticks < bar_ticks else 0


def _unrolled(bars: list[Bar]) -> list[Bar]:
    """Bars in the order in which they are played: each repeated section twice, each ending at its time."""
    made: list[Bar] = []
    start = 0
    for i, bar in enumerate(bars):
        if bar.opened_by in SECTIONS and bar.ending != "2":
            start = i
        made.append(bar)
        if bar.closed_by in ENDS and bar.ending != "2":
            first = next((k for k in range(start, i + 1) if bars[k].ending == "1"), i + 1)
            made += bars[start:first]
    return made
