"""Turns between callers: whose rows go first where more are ready than one run takes.

Round robin as in Nagle, "On packet switches with infinite storage", RFC 970: one queue a caller, and each gives one row
a round. Here the rounds are ranks, so that NumPy sorts all rows at once.
"""

from __future__ import annotations

import numpy as np

from cellar_server.scheduler.work import Work

# A row that waited so many seconds goes before all of its caller that came later, whatever their deadlines.
PATIENCE_S = 5.0


def due(work: Work, rows: np.ndarray, without: float) -> np.ndarray:
    """By when each of the rows [n] is to be served: its deadline, where that is not far, or `without` for none."""
    deadline = work.deadline[rows]
    return np.where(deadline < np.inf, np.minimum(deadline, work.arrived[rows] + PATIENCE_S), without)


def soonest_first(work: Work, ready: np.ndarray) -> np.ndarray:
    """Ready rows [n], those with a deadline sorted by when they are due (Jackson, "Scheduling a production line to
    minimize maximum tardiness", 1955): they share the places that they had, so rows without one keep theirs."""
    when = due(work, ready, np.inf)
    places = np.flatnonzero(when < np.inf)
    ordered = ready.copy()
    ordered[places] = ready[places[np.argsort(when[places], kind="stable")]]
    return ordered


class Turns:
    """Orders ready rows so that callers get equal shares of each run, within one row.

    A caller that was not served goes before one that was, by the number of runs it waits without service. So with C
    callers and runs of R rows, somebody of each is served every ceil(C / R) runs, whatever the others have ready.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._turn = 0  # runs that could not take all
        # callers that had rows ready lately, ascending, and the turn in which each was last served
        self._callers = np.zeros(0, np.int64)
        self._served = np.zeros(0, np.int64)
        # where the caller of each row of work stood among them when the row was ordered last
        self._place = np.zeros(work.capacity, np.int32)
        self.num_callers = 0  # of those whose rows were ordered last

    def order(self, ready: np.ndarray, behind: np.ndarray | None = None) -> np.ndarray:
        """Ready rows [n] in order of turn; behind: rows that go behind all others, a mask [n] (bulk)."""
        n = len(ready)
        self._turn += 1
        place = self._places(ready)
        self.num_callers = int(np.count_nonzero(np.bincount(place)))
        if self.num_callers == 1 and behind is None:
            return ready
        # runs without service: since it became ready, or since its caller was served
        patience = np.minimum(self._work.waited[ready], self._turn - self._served[place])
        order = _sorted(patience.max() - patience)
        if self.num_callers == n and behind is None:
            return ready[order]
        queue = place if behind is None else place + len(self._callers) * behind
        # the rank of a row among its caller's: rows sorted by queue, each queue's first one numbered 0
        by_queue = _sorted(queue)
        sorted_queue = queue[by_queue]
        first = np.flatnonzero(np.r_[True, sorted_queue[1:] != sorted_queue[:-1]])
        rank = np.empty(n, np.int64)
        rank[by_queue] = np.arange(n) - np.repeat(first, np.diff(np.r_[first, n]))
        order = order[_sorted(rank[order])]
        if behind is not None:
            order = order[_sorted(behind[order])]
        return ready[order]

    def serve(self, rows: np.ndarray) -> None:
        """The run takes these rows [m] of what was ordered last."""
        self._served[self._place[rows]] = self._turn

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Where the callers of rows [n] stand among those known. Those are looked for whose row was not ordered before;
        all are listed anew where one is not found, or most have no row left."""
        caller, callers = self._work.caller[rows], self._callers
        if 0 < len(callers) <= 2 * len(rows):
            place = np.minimum(self._place[rows], len(callers) - 1)
            fresh = np.flatnonzero(callers[place] != caller)
            place[fresh] = np.minimum(np.searchsorted(callers, caller[fresh]), len(callers) - 1)
            if (callers[place[fresh]] == caller[fresh]).all():
                self._place[rows] = place
                return place
        callers, place = np.unique(caller, return_inverse=True)
        served = np.zeros(len(callers), np.int64)
        if len(self._callers):
            at = np.minimum(np.searchsorted(self._callers, callers), len(self._callers) - 1)
            served = np.where(self._callers[at] == callers, self._served[at], 0)
        self._callers, self._served = callers, served
        self._place[rows] = place
        return place


def _sorted(keys: np.ndarray) -> np.ndarray:
    """Places that sort keys [n], none negative; NumPy sorts 16 bits by radix, in a tenth of the time of 64."""
    return np.argsort(np.minimum(keys, 0xFFFF).astype(np.uint16), kind="stable")
