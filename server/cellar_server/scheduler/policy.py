"""Which ready rows the next run takes, and how many steps of each: cell-level batching without padding.

After Gao et al., "Low latency RNN inference with cellular batching", EuroSys 2018: rows join the batch at every run,
and leave it within a run as soon as they have had their steps (see ragged). No row has more steps than it has left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from cellar_server.runtime.base import Runtime
from cellar_server.runtime.ragged import Part, parts

# Steps that each row of a run is to have before more rows are taken: few rows compute as much a second as many, end
# sooner, and are put into runs and taken out of them fewer times.
DEPTH = 16
# A run takes rows, though they do not have so many then, until what it costs beside their steps is this part of it.
BESIDE_PART = 0.05
# Calls of the runtime in one run at most: each time that rows leave it, the others go on in a call of their own.
MAX_CALLS = 8
# Beside the first two calls, as many as cost no more than this part of the steps.
CALLS_PART = 0.2
# Seconds that it takes to give rows their outcome apart from the others of their run, as measured.
TELL_S = 1.5e-4
# They are told where that spares them so many times what it costs all others: under load those who are yet to come pay
# for it too.
TELL_GAIN = 10


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a run of `rows` rows and q steps: base + per_step * q + per_cell * rows * q."""

    base: float = 50e-6
    per_step: float = 20e-6
    per_cell: float = 20e-6

    # rows and steps of the runs that it is learned from
    SHAPES: ClassVar = ((1, 1), (1, 16), (64, 1), (64, 4))

    def __call__(self, rows: np.ndarray | int, q: np.ndarray | int) -> np.ndarray | float:
        return self.base + self.per_step * q + self.per_cell * rows * q

    def of_ragged(self, steps: np.ndarray) -> float:
        """Of rows that have so many steps each, the most first [batch]: a call each time that rows leave."""
        calls = 1 + int((steps[1:] != steps[:-1]).sum())
        return calls * self.base + self.per_step * float(steps[0]) + self.per_cell * float(steps.sum())

    def max_steps(self, rows: int, budget_s: float) -> int:
        """Most steps of `rows` rows that fit the budget; at least 1."""
        return max(1, int((budget_s - self.base) / (self.per_step + self.per_cell * rows)))

    def most_rows(self, q: int, budget_s: float) -> int:
        """Most rows of q steps that fit the budget; 0 where none does."""
        return max(0, int((budget_s - self.base - self.per_step * q) / (self.per_cell * q)))

    @staticmethod
    def measure(runtime: Runtime, clock: Callable[[], float] = time.perf_counter) -> Cost:
        """Learns the three numbers from four shapes of run, each the least of five (noise only ever adds)."""

        def least(rows: int, q: int) -> float:
            x = np.zeros((rows, q, *runtime.input_shape), runtime.input_dtype)
            state = np.tile(runtime.start, (rows, 1))
            times = []
            for _ in range(5):
                begun = clock()
                runtime.step(x, state)
                times.append(clock() - begun)
            return min(times)

        return Cost.of([(rows, q, least(rows, q)) for rows, q in Cost.SHAPES])

    @staticmethod
    def of(runs: Sequence[tuple[int, int, float]]) -> Cost:
        """The three numbers that fit runs of (rows, steps, seconds) best."""
        matrix = np.array([[1.0, q, rows * q] for rows, q, _ in runs])
        weights = np.array([seconds for _, _, seconds in runs])
        # relative least squares, so that the small runs count as much as the large ones
        solved, *_ = np.linalg.lstsq(matrix / weights[:, None], np.ones(len(runs)), rcond=None)
        base, per_step, per_cell = np.maximum(solved, 1e-9)
        return Cost(float(base), float(per_step), float(per_cell))


def num_fitting(remaining: np.ndarray, cost: Cost, *, max_rows: int, budget_s: float) -> int:
    """How many of the first rows one run takes. remaining: steps that each has left, in order of turn [n]."""
    remaining = remaining[:max_rows]
    depth = min(DEPTH, int(remaining.max()))
    beside_s = cost.base + cost.per_step * depth
    fitting = (np.minimum(remaining, depth).cumsum() * cost.per_cell).searchsorted(budget_s - beside_s, side="right")
    worth_it = int(beside_s / (BESIDE_PART * cost.per_cell * depth))
    return min(len(remaining), max(1, int(fitting), worth_it))


def choose(
    remaining: np.ndarray, cost: Cost, *, max_rows: int, budget_s: float, is_exact: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the next run, as places in `remaining`, and the steps of each, the most first: int64 [batch].

    remaining: steps that each ready row has left, at least 1 [n], in order of turn; is_exact: rows must be taken whole
    (never cut), so only rows with as many as the first.

    The run takes the first rows, as many as have DEPTH steps each within the budget, and then as many steps of all of
    them as that allows: of each what it has left, or fewer where rows would leave the run at too many lengths.
    """
    if is_exact:
        places = np.flatnonzero(remaining == remaining[0])[:max_rows]
        return places, remaining[places]
    remaining = remaining[: num_fitting(remaining, cost, max_rows=max_rows, budget_s=budget_s)]
    n, shortest, longest = len(remaining), int(remaining.min()), int(remaining.max())
    most = min(longest, cost.max_steps(n, budget_s))
    if shortest >= most:
        return np.arange(n), np.full(n, most)
    cells_s = min(budget_s, cost.per_cell * float(remaining.sum()))
    calls = min(n, MAX_CALLS, 2 + int(CALLS_PART * cells_s / cost.base))
    ascending = np.sort(remaining)
    steps = np.minimum(remaining, _deepest(ascending, cost, budget_s - calls * cost.base))
    places = (-steps).argsort(kind="stable")
    steps = steps[places]
    if 1 + np.count_nonzero(steps[1:] != steps[:-1]) > calls:
        leaving = steps[np.linspace(n - 1, 0, calls).astype(np.int64)]
        steps = leaving[leaving.searchsorted(steps, side="right") - 1]
    return places, steps


def calls(steps: np.ndarray, cost: Cost, look_s: float) -> list[Part]:
    """The calls of a run of rows that have so many steps each, the most first [batch]: none longer than look_s, where
    it has more than a step."""
    made = list(parts(steps))
    if look_s == np.inf:
        return made
    cut: list[Part] = []
    for rows, begin, end in made:
        edges = [*range(begin, end, cost.max_steps(rows, look_s)), end]
        cut += [(rows, first, last) for first, last in pairwise(edges)]
    return cut


def rests_s(made: list[Part], cost: Cost) -> list[float]:
    """Expected seconds of what comes after each call of a run."""
    rests = [0.0]
    for rows, begin, end in made[:0:-1]:
        rests.append(rests[-1] + float(cost(rows, end - begin)))
    return rests[::-1]


def is_worth_telling(num_left: int, num_others: int, rest_s: float, tell_s: float = TELL_S) -> bool:
    """Rows that have left a run wait much longer for its end, taken together, than all others for their being told."""
    return num_left * rest_s > TELL_GAIN * num_others * tell_s


def _deepest(ascending: np.ndarray, cost: Cost, seconds: float) -> int:
    """Up to how many steps of each row fit so many seconds, at least 1; ascending: steps that rows have left [n]."""
    n, per_step = len(ascending), cost.per_step / cost.per_cell
    sums = ascending.cumsum()
    # up to each of these lengths: steps of all rows
    totals = sums + ascending * (np.arange(n - 1, -1, -1) + per_step)
    room = seconds / cost.per_cell
    fitting = int(totals.searchsorted(room, side="right"))
    if fitting == n:
        return int(ascending[-1])
    ended = float(sums[fitting - 1]) if fitting else 0.0
    return max(1, int((room - ended) / (n - fitting + per_step)))
