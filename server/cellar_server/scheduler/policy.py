"""Which ready rows the next run takes, and how many steps: cell-level batching without padding.

After Gao et al., "Low latency RNN inference with cellular batching", EuroSys 2018: rows join and leave the batch at
every run. A run takes q steps of each of its rows, and q never exceeds what any of them has left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cellar_server.runtime.base import Runtime


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


def choose(
    remaining: np.ndarray,
    must: np.ndarray,
    cost: Cost,
    *,
    max_rows: int,
    budget_s: float,
    is_exact: bool = False,
) -> tuple[np.ndarray, int]:
    """Rows of the next run, as places in `remaining`, and its number of steps q.

    remaining: steps that each ready row has left, at least 1 [n], in order of turn; must: rows that the run before
    passed over, which this one takes [n]; is_exact: rows must be taken whole (never cut), so only rows with exactly q.

    q is the distinct length, capped by the budget, at which most steps are computed per second. A row left out because
    q was more than it had is taken by the next run; so each ready row is passed over at most once in its turn.
    """
    n = len(remaining)
    if is_exact:
        q = int(remaining[0])
        return np.flatnonzero(remaining == q)[:max_rows], q
    cap = cost.max_steps(min(n, max_rows), budget_s)
    shortest = int(remaining.min())
    must_any = bool(must.any())
    if n == 1 or shortest >= cap or shortest == remaining.max():
        q = min(shortest, cost.max_steps(min(n, max_rows), budget_s))
        if must_any and n > max_rows:
            return np.concatenate([np.flatnonzero(must), np.flatnonzero(~must)])[:max_rows], q
        return np.arange(min(n, max_rows)), q
    if must_any:
        order = np.concatenate([np.flatnonzero(must), np.flatnonzero(~must)])
        ceiling = int(remaining[order[:max_rows]][must[order[:max_rows]]].min())
    else:
        order = np.arange(n)
        ceiling = int(remaining.max())
    left = remaining[order]
    lengths = np.unique(np.minimum(left[: 4 * max_rows], ceiling))
    if len(lengths) > 16:
        lengths = np.unique(np.quantile(lengths, np.linspace(0, 1, 16), method="nearest"))
    rows = np.minimum((left[None, :] >= lengths[:, None]).sum(axis=1), max_rows)
    # a run longer than the budget is cut to it, whatever its rows have left
    fits = np.maximum(1, ((budget_s - cost.base) / (cost.per_step + cost.per_cell * rows)).astype(np.int64))
    steps = np.minimum(lengths, fits)
    best = int(np.argmax(rows * steps / cost(rows, steps)))
    length, q = int(lengths[best]), int(steps[best])
    return order[np.flatnonzero(left >= min(length, q))[:max_rows]], q
