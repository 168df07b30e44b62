"""What the scheduler asks of a runtime."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class StartupError(Exception):
    """The server cannot start as it was asked to; the message is for whoever started it."""


class Runtime(Protocol):
    """A model's graphs as pure functions on batches.

    state_size: S; start: float32 [S], the row that a session starts from; input_dtype and input_shape: of one step;
    output_shape: of one emission.
    """

    state_size: int
    start: np.ndarray
    input_dtype: np.dtype[Any]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def step(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x: [batch, time, ...], state: float32 [batch, S] -> y: float32 [batch, time, ...], next state [batch, S]."""
        ...

    def prime(self, condition: np.ndarray, state: np.ndarray) -> np.ndarray:
        """condition: [batch, ...] (a sequence: [batch, time, ...]), state: float32 [batch, S] -> next state."""
        ...
