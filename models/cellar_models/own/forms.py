"""The forms in which a network runs as a step, and one pass of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor


class Form(Enum):
    """How the network is run.

    FOLDED: it sees every step of every row as a row of one step, while its recurrent layers see the sequences: one ONNX
    node a layer. LOOP: one step at a time, from what its cells are given at the next one. FED: the same from what they
    gave at the last one, where that is also used elsewhere. GIVEN: one step at a time, by the state that it takes and
    returns. WHOLE: a sequence at once, no state.
    """

    FOLDED = "folded"
    LOOP = "loop"
    FED = "fed"
    GIVEN = "given"
    WHOLE = "whole"


@dataclass
class Pass:
    """One forward of the network: rows of the batch, the state row [rows, S] (None: zeros, to find out S), and where
    reading and writing stand. parts: name and shape of each piece, in the row's order."""

    rows: Any
    state: Tensor | None
    at: int = 0
    parts: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    following: dict[str, Tensor] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The next piece of the state: [rows, *shape]."""
        size = math.prod(shape)
        self.parts.append((name, shape))
        begin, self.at = self.at, self.at + size
        if self.state is None:
            return torch.zeros(self.rows, *shape)
        return self.state[:, begin : self.at].reshape(self.rows, *shape)

    def name(self, layer: str) -> str:
        """A layer's name, with a number from its second call on."""
        self.calls[layer] += 1
        return (layer or "network") if self.calls[layer] < 2 else f"{layer}#{self.calls[layer]}"


def in_order(y: Tensor, layout: Any, rows: Any, steps: Any) -> Tensor:
    """An output as [rows, steps, ...]; as [rows, ...] for many-to-one."""
    if layout.flat == "rows":
        return y.reshape(rows, steps, *layout.step)
    if layout.flat == "steps":
        return y.reshape(steps, rows, *layout.step).transpose(0, 1)
    if layout.time_axis is None:
        return y.movedim(layout.row_axis, 0).reshape(rows, *layout.step)
    return y.movedim((layout.row_axis, layout.time_axis), (0, 1)).reshape(rows, steps, *layout.step)
