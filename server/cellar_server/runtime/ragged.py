"""Rows of different numbers of steps in one run: no step is padded, a row leaves once it has had its own.

steps: int64 [batch], the most first. Of x [batch, time, ...] and y a row's own steps count alone: those beyond are
neither read nor set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np


def parts(steps: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(rows, first step, end) of each call: the first ones of the rows have those steps."""
    ends = [*(np.flatnonzero(steps[1:] != steps[:-1]) + 1).tolist(), len(steps)]
    begin = 0
    for rows in reversed(ends):
        end = int(steps[rows - 1])
        yield rows, begin, end
        begin = end


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
    y = np.empty(0, np.float32)
    ended = np.empty(state.shape, np.float32)
    for rows, begin, end in parts(steps):
        part, state = run(x[:rows, begin:end], state[:rows])
        ended[:rows] = state
        if not begin:
            y = np.empty((*x.shape[:2], *part.shape[2:]), np.float32)
        y[:rows, begin:end] = part
    return y, ended


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
