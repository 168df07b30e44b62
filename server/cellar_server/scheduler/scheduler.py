"""The ready queue: whose turn it is, and the runs made of it."""

from __future__ import annotations

import numpy as np

from cellar_server.runtime.base import Runtime
from cellar_server.scheduler.fairness import Turns, soonest_first
from cellar_server.scheduler.policy import Cost, choose, num_fitting
from cellar_server.scheduler.work import Kind, Work

# A bulk row that was ready during this many runs is taken like an interactive one.
BULK_PATIENCE = 8
# While few rows run, it is looked around for others after this share of what all ready rows would take.
SHARE = 1 / 4
# After this many seconds at the earliest; what is left of a run when somebody came is not cut off where it is less.
LEAST_RUN_S = 2e-3
# Ready rows from which runs are long whoever comes: to cut so many costs more than it spares a newcomer.
MANY_ROWS = 12
# So many runs after an interactive row was taken, bulk rows make way as few rows do: another one is likely to come.
BULK_CAUTION = 64


class Scheduler:
    """Ready rows of work in order of turn: a row that ran goes to the back, interactive rows go before bulk ones, and
    where one run cannot take all, callers take turns."""

    def __init__(
        self,
        work: Work,
        runtime: Runtime,
        cost: Cost,
        *,
        max_rows: int,
        budget_s: float,
        is_exact: bool = False,
        is_priming: bool = False,
    ) -> None:
        self.work = work
        self.runtime = runtime
        self.cost = cost
        self.max_rows = max_rows
        self.budget_s = budget_s
        self.is_exact = is_exact
        self.is_priming = is_priming  # rows may be of the prime graph: a run is of one graph
        self._prime_is_next = True
        # of the run taken last: seconds after which somebody who came meanwhile is let in, inf for none
        self.look_s = np.inf
        self._ready = np.zeros(0, np.int64)
        self._turns = Turns(work)
        self._caution = 0
        self.is_deep = False  # callers that waited through the last run fill another one like it: others go behind them

    @property
    def has_ready(self) -> bool:
        return len(self._ready) > 0

    @property
    def ready(self) -> np.ndarray:
        """The ready rows in order of turn, int64 [n]."""
        return self._ready

    @property
    def num_callers(self) -> int:
        """Callers that took turns lately."""
        return self._turns.num_callers

    def most_rows(self, q: int) -> int:
        """How many rows of q steps one run may take."""
        return min(self.max_rows, self.cost.most_rows(q, self.budget_s))

    def add(self, rows: np.ndarray) -> None:
        """Rows [n] become ready, behind those that are."""
        self._ready = np.concatenate([self._ready, rows]) if len(self._ready) else rows

    def remove(self, rows: np.ndarray) -> None:
        """Rows [n] are ready no more."""
        self._ready = self._ready[~np.isin(self._ready, rows)]

    def left(self, rows: np.ndarray) -> np.ndarray:
        """Steps that rows [n] have left; of a generation the next one."""
        left = self.work.steps[rows] - self.work.done[rows]
        left[self.work.kind[rows] == Kind.GENERATION] = 1
        return left

    def take_late(self, now: float, pace_s: float) -> np.ndarray:
        """Removes and returns the ready rows whose deadline has passed; where one run cannot take all, also those
        whose deadline would pass though they took part in every run: others can have their places. pace_s: seconds of
        one step of such a row."""
        if not self.work.num_limited:
            return self._ready[:0]
        needed_s = pace_s * self.left(self._ready) if len(self._ready) > self.max_rows else 0.0
        late = self.work.deadline[self._ready] <= now + needed_s
        if not late.any():
            return self._ready[:0]
        rows = self._ready[late]
        self._ready = self._ready[~late]
        return rows

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """The next run: rows of work, removed from the queue, and the steps of each, the most first: int64 [batch].
        Something must be ready. Where rows of both graphs are ready, the graphs take turns."""
        if not self.is_priming:
            return self._next()
        is_prime = self.work.kind[self._ready] == Kind.PRIMING
        if is_prime.all() or not is_prime.any():
            return self._next()
        is_mine = is_prime == self._prime_is_next
        self._prime_is_next = not self._prime_is_next
        aside = self._ready[~is_mine]
        self._ready = self._ready[is_mine]
        rows, steps = self._next()
        self.work.waited[aside] += 1
        self._ready = np.concatenate([aside, self._ready])
        return rows, steps

    def _next(self) -> tuple[np.ndarray, np.ndarray]:
        work, ready = self.work, self._ready
        remaining = self.left(ready)
        is_bulk = work.is_bulk[ready] if work.num_limited else None
        if is_bulk is not None and not is_bulk.any():
            is_bulk = None
        max_rows, budget_s = self.max_rows, self.budget_s
        look_s = self._look(remaining, is_bulk)
        if self.is_priming and work.kind[ready[0]] == Kind.PRIMING:
            budget_s, look_s = min(budget_s, look_s), np.inf  # a run of the prime graph is not cut
        self.look_s = np.inf if self.is_exact or look_s >= budget_s else look_s
        takes_turns = num_fitting(remaining, self.cost, max_rows=max_rows, budget_s=budget_s) < len(ready)
        if takes_turns or is_bulk is not None:
            ready = self._ordered(ready, takes_turns=takes_turns, has_bulk=is_bulk is not None)
            remaining = self.left(ready)
        places, steps = choose(remaining, self.cost, max_rows=max_rows, budget_s=budget_s, is_exact=self.is_exact)
        rows = ready[places]
        self.is_deep = takes_turns and is_bulk is None and self._turns.num_callers >= 3 * len(rows)
        if is_bulk is None or not work.is_bulk[rows].all():
            self._caution = BULK_CAUTION
        work.waited[rows] = 0
        if len(rows) == len(ready):
            self._ready = ready[:0]
            return rows, steps
        if takes_turns:
            self._turns.serve(rows)
        stays = np.ones(len(ready), np.bool_)
        stays[places] = False
        left = ready[stays]
        work.waited[left] += 1
        self._ready = left
        return rows, steps

    def _ordered(self, ready: np.ndarray, *, takes_turns: bool, has_bulk: bool) -> np.ndarray:
        """Ready rows [n] by whose turn it is."""
        work = self.work
        if takes_turns and work.num_limited:
            ready = soonest_first(work, ready)
        behind = None
        if has_bulk:
            behind = work.is_bulk[ready] & (work.waited[ready] < BULK_PATIENCE)
        if takes_turns:
            return self._turns.order(ready, behind)
        return ready if behind is None else np.concatenate([ready[~behind], ready[behind]])

    def _look(self, remaining: np.ndarray, is_bulk: np.ndarray | None) -> float:
        """Seconds after which the next run should make way for who came meanwhile: with what waits, because long runs
        compute more a second and short ones answer sooner. Bulk rows count for nothing in this where interactive ones
        are, or lately were."""
        if is_bulk is not None:
            remaining = remaining[~is_bulk]
            if not len(remaining) and not self._caution:
                return np.inf
            self._caution = max(0, self._caution - 1)
        if len(remaining) >= MANY_ROWS:
            return np.inf
        return max(LEAST_RUN_S, SHARE * self.cost.per_cell * float(remaining.sum()))
