"""What every network of the zoo is: the cell contract, its manifest, and its equations for the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cellar_proto.v1.manifest_pb2 import Manifest
from torch import Tensor, nn


class Network(nn.Module):
    """A pure step over one state row.

    forward(x: [batch, time, ...], state: float32 [batch, S]) -> (y: float32 [batch, time, ...], state'); networks with
    a condition also have prime(condition: [batch, ...], state) -> state', with a time axis where is_prime_recurrent.
    """

    name: str
    state_size: int
    has_prime = False
    # a network that must see the whole sequence is never cut
    is_whole_only = False
    is_prime_recurrent = False

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def prime(self, condition: Tensor, state: Tensor) -> Tensor:
        raise NotImplementedError

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`forward` in NumPy float64 by the equations alone."""
        raise NotImplementedError

    def prime_equations(self, condition: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The same of a recurrent `prime`."""
        raise NotImplementedError

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        """Inputs as they come, [batch, time, ...] of the model's dtype."""
        raise NotImplementedError

    def example_condition(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        """Conditions as they come, [batch, ...], or of sequences [batch, time, ...]."""
        raise NotImplementedError

    def describe(self, manifest: Manifest, folder: Path) -> None:
        """Fills in the manifest, and writes the codec files beside it."""
        raise NotImplementedError
