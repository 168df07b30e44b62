"""How long a row that comes now is expected to wait: what is refused under overload, and when it may come again."""

from __future__ import annotations

import numpy as np

from cellar_server.scheduler.scheduler import Scheduler

# How much of the measured speed is that of older runs.
_MEMORY = 0.9


class Pressure:
    """The ready queue in seconds. Any thread may ask; one engine's thread tells it of its runs.

    Callers take turns (see Turns), so a row waits for the rows that the others have ready up to its own rank, not for
    all: one caller's flood is its own wait.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        rows = scheduler.max_rows
        self._seconds, self._rows = float(scheduler.cost(rows, 1)), float(rows)  # of what ran lately, fading
        self._begun: tuple[float, int] | None = None  # the run before, after which rows were left: when, its rows
        # ready rows, and of their callers: numbers, how many each has, the latter sorted, their sums [C + 1]
        self._seen: tuple[np.ndarray, ...] = ()

    @property
    def s_per_row(self) -> float:
        """Seconds of one row of a full run, all that is done beside it included."""
        return self._seconds / self._rows

    def begin(self, rows: int, now: float) -> None:
        """A run of so many rows begins."""
        if self._begun is not None:
            since, count = self._begun
            self._seconds = _MEMORY * self._seconds + (now - since)
            self._rows = _MEMORY * self._rows + count
        self._begun = (now, rows) if self._scheduler.has_ready else None

    def wait_s(self, caller: int, before: int = 0) -> float:
        """Seconds until the run of a caller's next row would be over; before: rows that come ahead of it and are not
        ready yet. 0 where one run takes all."""
        if self.is_low(before):
            return 0.0
        callers, counts, ordered, sums = self._look()
        at = int(np.searchsorted(callers, caller))
        own = int(counts[at]) if at < len(callers) and callers[at] == caller else 0
        return (_up_to(own + 1, ordered, sums) + before + self._scheduler.max_rows) * self.s_per_row

    def waits_s(self, callers: np.ndarray) -> np.ndarray | None:
        """As `wait_s` for rows that come now, in this order, by their callers: [n]. None where one run takes all."""
        n = len(callers)
        if self.is_low(n):
            return None
        known, counts, _, _ = self._look()
        names, of, added = np.unique(callers, return_inverse=True, return_counts=True)
        at = np.minimum(np.searchsorted(known, names), max(0, len(known) - 1))
        is_known = known[at] == names if len(known) else np.zeros(len(names), np.bool_)
        own = np.where(is_known, counts[at], 0) if len(known) else np.zeros(len(names), np.int64)
        # each row's rank among its caller's
        order = np.argsort(of, kind="stable")
        rank = np.empty(n, np.int64)
        rank[order] = np.arange(n) - np.repeat(np.cumsum(added) - added, added)
        rank += own[of] + 1
        ordered = np.sort(np.concatenate([own + added, counts[~np.isin(known, names)]]))
        sums = np.concatenate([[0], np.cumsum(ordered)])
        full = np.searchsorted(ordered, rank)
        return (sums[full] + (len(ordered) - full) * rank + self._scheduler.max_rows) * self.s_per_row

    def backlog_s(self, caller: int) -> float:
        """Seconds of waiting that whoever is live has already, in the eyes of a caller who wants more: what a single
        other caller has ready beyond all the rest does not count. 0 where one run takes all."""
        if self.is_low():
            return 0.0
        callers, counts, ordered, sums = self._look()
        at = int(np.searchsorted(callers, caller))
        own = int(counts[at]) if at < len(callers) and callers[at] == caller else 0
        level = own if own == ordered[-1] else max(own, int(ordered[-2]) if len(ordered) > 1 else 0)
        return _up_to(level, ordered, sums) * self.s_per_row

    def is_low(self, before: int = 0) -> bool:
        """One run takes all that is ready: nobody waits."""
        return len(self._scheduler.ready) + before <= self._scheduler.max_rows

    def _look(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        ready, seen = self._scheduler.ready, self._seen
        if not seen or seen[0] is not ready:  # the queue is a new array whenever it changes
            callers, counts = np.unique(self._scheduler.work.caller[ready], return_counts=True)
            ordered = np.sort(counts)
            seen = self._seen = (ready, callers, counts, ordered, np.concatenate([[0], np.cumsum(ordered)]))
        return seen[1:]  # type: ignore[return-value]


def _up_to(rank: int, ordered: np.ndarray, sums: np.ndarray) -> int:
    """Rows that stand before one of a rank: of each caller at most so many."""
    full = int(np.searchsorted(ordered, rank))
    return int(sums[full]) + (len(ordered) - full) * rank
