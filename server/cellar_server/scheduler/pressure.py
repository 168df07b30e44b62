"""How long a row that comes now is expected to wait: what is refused under overload, and when it may come again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellar_server.scheduler.fairness import PATIENCE_S, due
from cellar_server.scheduler.scheduler import Scheduler

# How much of the measured speed is that of older runs.
_MEMORY = 0.9


@dataclass(frozen=True, slots=True)
class _Line:
    """Rows as they stand behind one another, each caller's by themselves.

    order: rows by caller, and of one by when they are due [n]; due: of these [n]; sums: steps of all before each one
    [n + 1]; callers: [C]; first: where each one's rows begin [C + 1]; totals: steps of each caller, ascending [C];
    total_sums: of all before each one [C + 1].
    """

    order: np.ndarray
    due: np.ndarray
    sums: np.ndarray
    callers: np.ndarray
    first: np.ndarray
    totals: np.ndarray
    total_sums: np.ndarray

    @staticmethod
    def of(caller: np.ndarray, due: np.ndarray, steps: np.ndarray) -> _Line:
        """Of rows [n] in order of arrival."""
        order = np.lexsort((due, caller))
        sums = np.concatenate([[0], np.cumsum(steps[order])])
        ordered = caller[order]
        first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, np.int64)
        ends = np.r_[first, len(ordered)]
        totals = np.sort(np.diff(sums[ends]))
        return _Line(order, due[order], sums, ordered[first], ends, totals, np.concatenate([[0], np.cumsum(totals)]))

    def own_steps(self, caller: int, until: float = np.inf) -> int:
        """Steps of a caller's rows that are due no later."""
        at = int(np.searchsorted(self.callers, caller))
        if at == len(self.callers) or self.callers[at] != caller:
            return 0
        begin, end = int(self.first[at]), int(self.first[at + 1])
        place = begin + int(np.searchsorted(self.due[begin:end], until, side="right"))
        return int(self.sums[place] - self.sums[begin])

    def steps_up_to(self, level: np.ndarray | int) -> np.ndarray:
        """Steps that are computed until a caller has had `level` of its own: of each caller at most so many."""
        full = np.searchsorted(self.totals, level)
        return self.total_sums[full] + (len(self.totals) - full) * level


class Pressure:
    """The ready queue in seconds. Any thread may ask; one engine's thread tells it of its runs.

    What stands before a row counts in steps, whatever the rows are: those of its caller that are due earlier, and, as
    callers take turns (see Turns), of each other caller as many steps as the row's own has until then: one caller's
    flood is its own wait. Behind that the row needs its own steps one after the other. Where every run takes all that
    is ready, each step of a row is one of all others too: of those that end, others take the places.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        # of what ran lately, fading: seconds, steps of all rows, and steps of each row
        self._seconds, self._steps, self._q = (
            float(scheduler.cost(scheduler.max_rows, 1)),
            float(scheduler.max_rows),
            1.0,
        )
        # the run before, after which rows were left: when it began, steps of all rows, and of one that had the most
        self._begun: tuple[float, int, int] | None = None
        self._seen: tuple[np.ndarray, _Line] | None = None

    @property
    def s_per_step(self) -> float:
        """Seconds of one step of one row of a full run, all that is done beside it included."""
        return self._seconds / self._steps

    @property
    def pace_s(self) -> float:
        """Seconds of one step of a row whose turn it is. With as many callers as a run has rows, it is so seldom: they
        all step before it does again, those that come meanwhile too."""
        return max(
            self._seconds / self._q, self.s_per_step * min(self._scheduler.max_rows, self._scheduler.num_callers)
        )

    @property
    def s_per_row(self) -> float:
        """Seconds of all steps that a ready row has left, on average; of one step where none is ready."""
        line = self._look()
        return self.s_per_step * (line.sums[-1] / len(line.order) if len(line.order) else 1.0)

    def begin(self, steps: int, q: int, now: float, *, goes_on: bool) -> None:
        """A run begins, of so many steps of all rows, at most q of each; goes_on: another one is sure to follow at
        once."""
        if self._begun is not None:
            since, total, most = self._begun
            self._seconds = _MEMORY * self._seconds + (now - since)
            self._steps = _MEMORY * self._steps + total
            self._q = _MEMORY * self._q + most
        self._begun = (now, steps, q) if goes_on else None

    def cut(self, steps: int, q: int) -> None:
        """The run that began last was cut: it was of so many steps of all rows, q of each at most."""
        if self._begun is not None:
            self._begun = (self._begun[0], steps, q)

    def wait_s(self, caller: int, deadline: float, now: float, steps: int = 1, before: int = 0) -> float:
        """Seconds until a caller's next row, of so many steps, would be over; before: rows like it that come ahead of
        it and are not ready yet. 0 where one run takes all."""
        if self.is_low(before + 1, steps):
            return 0.0
        line = self._look()
        if self.is_low(before + 1):
            others = len(self._scheduler.ready) + before
            return (others + 1) * steps * self.s_per_step if others else 0.0
        level = line.own_steps(caller, min(deadline, now + PATIENCE_S)) + steps
        # of its own caller all up to itself, which is none of those that wait
        ahead = int(line.steps_up_to(level)) - min(line.own_steps(caller), level) + level
        return (ahead + before * steps) * self.s_per_step + steps * self.pace_s

    def waits_s(
        self,
        callers: np.ndarray,
        deadlines: np.ndarray,
        now: float,
        steps: np.ndarray,
        longest: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """As `wait_s` for rows that come now, in this order: [n]. longest: steps of each that follow one another, where
        that is not all. None where one run takes all."""
        n = len(callers)
        if self.is_low(n, int(steps.max(initial=1))):
            return None
        caller, due, left = self._ready()
        if self.is_low(n):
            others = len(left) + np.arange(n)
            # what comes first of all is taken in any case, so that something always runs and tells the speed
            return np.where(others > 0, (others + 1) * (steps if longest is None else longest) * self.s_per_step, 0.0)
        until = np.concatenate([due, np.minimum(deadlines, now + PATIENCE_S)])
        line = _Line.of(np.concatenate([caller, callers]), until, np.concatenate([left, steps]))
        place = np.empty(len(line.order), np.int64)
        place[line.order] = np.arange(len(place))
        mine = place[len(caller) :]
        begin = line.first[np.searchsorted(line.callers, callers)]
        level = line.sums[mine + 1] - line.sums[begin]
        return line.steps_up_to(level) * self.s_per_step + (steps if longest is None else longest) * self.pace_s

    def backlog_s(self, caller: int) -> float:
        """Seconds of waiting that whoever is live has already, in the eyes of a caller who wants more: what a single
        other caller has ready beyond all the rest does not count. 0 where one run takes all."""
        if self.is_low():
            return 0.0
        line = self._look()
        own, most = line.own_steps(caller), int(line.totals[-1])
        level = own if own == most else max(own, int(line.totals[-2]) if len(line.totals) > 1 else 0)
        return float(line.steps_up_to(level)) * self.s_per_step

    def is_low(self, before: int = 0, steps: int = 0) -> bool:
        """One run takes all that is ready, and where the steps of a row are given, all of these too: nobody waits."""
        scheduler, n = self._scheduler, len(self._scheduler.ready) + before
        if n > scheduler.max_rows:
            return False
        return steps <= 1 or steps <= scheduler.cost.max_steps(n, scheduler.budget_s)

    def _ready(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the ready rows: caller, when due, steps left [n]. Those without a deadline keep their places: no row that
        comes now passes them."""
        scheduler, ready = self._scheduler, self._scheduler.ready
        work = scheduler.work
        return work.caller[ready], due(work, ready, -np.inf), scheduler.left(ready)

    def _look(self) -> _Line:
        ready, seen = self._scheduler.ready, self._seen
        if seen is None or seen[0] is not ready:  # the queue is a new array whenever it changes
            seen = self._seen = (ready, _Line.of(*self._ready()))
        return seen[1]
