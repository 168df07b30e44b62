"""From the text of a tune to its bars."""

from __future__ import annotations

import re

from cellar_models.tunes.notation import (
    ALTERATIONS,
    CHORD,
    CHORDS,
    ENDS,
    SEMITONES,
    STARTS,
    TICKS_PER_EIGHTH,
    TOKEN,
    TuneError,
    length_of,
    signature,
    tokens_of,
)
from cellar_models.tunes.tune import Bar, Tune

# Times that a section may be gone through is two; more bars than this are no tune.
MAX_BARS = 512


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
