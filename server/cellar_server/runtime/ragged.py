"""Rows of different numbers of steps in one run: no step is padded, a row leaves once it has had its own.

steps: int64 [batch], the most first. Of x [batch, time, ...] and y a row's own steps count alone: those beyond are
neither read nor set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

# Rows, first step and end of a call of the runtime: the first ones of a run's rows have those steps.
Part = tuple[int, int, int]


def parts(steps: np.ndarray) -> Iterator[Part]:
    """The calls of a run: one each time that rows have left."""
    ends = [*(np.flatnonzero(steps[1:] != steps[:-1]) + 1).tolist(), len(steps)]
    begin = 0
    for rows in reversed(ends):
        end = int(steps[rows - 1])
        yield rows, begin, end
        begin = end


class Ragged:
    """A run that is under way, computed a call at a time.

    calls: of it all, as `parts` says or each of those in several; at: how many were made; y: float32
    [batch, time, ...] and state: float32 [batch, S], of each row after the steps that it has had.
    """

    __slots__ = ("_going", "_x", "at", "calls", "state", "y")

    def __init__(self, x: np.ndarray, state: np.ndarray, calls: list[Part]) -> None:
        self.calls, self.at = calls, 0
        self._x, self._going = x, state
        self.y = self.state = np.empty(0, np.float32)

    def advance(self, run: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
        """Makes the next call. run: as Runtime.step."""
        rows, begin, end = self.calls[self.at]
        part, self._going = run(self._x[:rows, begin:end], self._going[:rows])
        if len(self.calls) == 1:
            self.y, self.state = part, self._going
        else:
            if not begin:
                self.y = np.empty((*self._x.shape[:2], *part.shape[2:]), np.float32)
                self.state = np.empty((len(self._x), self._going.shape[1]), np.float32)
            self.y[:rows, begin:end] = part
            self.state[:rows] = self._going
        self.at += 1

    @property
    def is_over(self) -> bool:
        return self.at == len(self.calls)

    @property
    def num_going(self) -> int:
        """The first rows that have steps left."""
        return 0 if self.is_over else self.calls[self.at][0]

    @property
    def num_done(self) -> int:
        """Steps that those have had."""
        return self.calls[self.at - 1][2]


def step(
    run: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    x: np.ndarray,
    state: np.ndarray,
    steps: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """y float32 [batch, time, ...] and the state float32 [batch, S] of each row after its steps; run: as
    Runtime.step, called each time that rows have left."""
    if steps[0] == steps[-1]:
        return run(x, state)
    under_way = Ragged(x, state, list(parts(steps)))
    while not under_way.is_over:
        under_way.advance(run)
    return under_way.y, under_way.state


def prime(
    run: Callable[[np.ndarray, np.ndarray], np.ndarray], condition: np.ndarray, state: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """The state float32 [batch, S] of each row after its steps of a condition; run: as Runtime.prime."""
    if steps[0] == steps[-1]:
        return run(condition, state)
    ended = np.empty(state.shape, np.float32)
    for rows, begin, end in parts(steps):
        state = run(condition[:rows, begin:end], state[:rows])
        ended[:rows] = state
    return ended
