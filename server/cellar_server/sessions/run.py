"""A run: rows that are computed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cellar_server.errors import CellarError
from cellar_server.runtime import ragged
from cellar_server.scheduler.scheduler import LEAST_RUN_S
from cellar_server.sessions.timing import Timing

# A run of fewer seconds is computed on the engine's own thread: to hand it over takes a tenth of that.
OVERLAP_S = 1.5e-3


@dataclass(slots=True)
class Run:
    """rows: of work [batch]; steps: of each, the most first, int64 [batch]; x: [batch, time, ...]; state: float32
    [batch, S]; cost_s: expected; calls: of the runtime, not yet counted, rows, steps and seconds of each.

    under_way: where rows may be given their outcome, or the run be cut, before it is over; then rows and steps are
    those that wait for theirs."""

    rows: np.ndarray
    steps: np.ndarray
    x: np.ndarray
    state: np.ndarray
    cost_s: float
    calls: list[tuple[int, int, float]] = field(default_factory=list)
    is_prime: bool = False  # of the prime graph, which has no y
    timed: Sequence[Timing] = ()  # of its rows' requests that somebody traces
    under_way: ragged.Ragged | None = None
    look_s: float = np.inf  # as in Scheduler
    rests_s: Sequence[float] = ()  # expected of what comes after each call

    @property
    def rest_s(self) -> float:
        """Expected seconds of what is left."""
        assert self.under_way is not None
        return self.rests_s[self.under_way.at - 1]

    @property
    def is_worth_cutting(self) -> bool:
        """What is left takes so long that somebody who came meanwhile should not wait for it."""
        return self.look_s < np.inf and self.rest_s > LEAST_RUN_S


# y: float32 [batch, time, ...] and the states after them float32 [batch, S], or what went wrong
Outcome = tuple[np.ndarray, np.ndarray] | CellarError
