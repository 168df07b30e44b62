"""Histograms that cost a run little: all its values in one call, or one value by bisection."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

# Upper bounds of the bins in seconds: a run of one row takes 0.1 ms, a queue that is full some seconds.
SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


class Histogram:
    """How many values were at most each bound; one thread adds, any may read.

    bounds: ascending; bins: of each bound, and of what is beyond the last; total: of all values.
    """

    __slots__ = ("_edges", "bins", "bounds", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.bins = [0] * (len(bounds) + 1)
        self.total = 0.0
        self._edges = np.array(bounds)

    def add(self, value: float, count: int = 1) -> None:
        """One value, so often."""
        self.bins[bisect_left(self.bounds, value)] += count
        self.total += count * value

    def add_all(self, values: np.ndarray) -> None:
        """Values [n]."""
        if len(values) == 1:
            self.add(float(values[0]))
            return
        if not len(values):
            return
        self.total += float(values.sum())
        places = np.searchsorted(self._edges, values)
        first = int(places[0])
        if (places == first).all():  # what waited for one run has mostly waited as long
            self.bins[first] += len(values)
            return
        for place, count in enumerate(np.bincount(places).tolist()):
            self.bins[place] += count

    def cumulative(self) -> list[int]:
        """Values up to each bound, and all of them at the end, as they stand."""
        return np.cumsum(self.bins.copy()).tolist()
