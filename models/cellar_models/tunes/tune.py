"""A tune: its bars, what is wrong with them, and its notes as they are played."""

from __future__ import annotations

from dataclasses import dataclass, field

from cellar_models.tunes.notation import ENDS, SECTIONS, TICKS_PER_EIGHTH


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
