"""One network with each kind of cell, at about equal parameters and trained in the same way."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cellar_proto.v1.manifest_pb2 import Manifest, Mode
from torch import Tensor

from cellar_models.export import write_graphs
from cellar_models.network import Network
from cellar_models.recurrent import Recurrent
from cellar_models.training import Trainer
from cellar_models.verify import verify


@dataclass(frozen=True)
class Trial:
    """A network with one kind of cell. is_shipped: it is the zoo's own; by seed: scores by `metric`, num_epochs trained
    for, seconds of training on one thread; ms_per_step: of one row in ONNX Runtime, one thread."""

    model: str
    mode: str
    kind: str
    is_shipped: bool
    hidden_size: int
    num_parameters: int
    state_size: int
    metric: str
    unit: str
    seeds: list[int]
    scores: list[float]
    num_epochs: list[int]
    num_updates: list[int]
    seconds: list[float]
    ms_per_step: float


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def cell_of(network: torch.nn.Module) -> Recurrent:
    """A network's recurrent layers."""
    return next(module for module in network.modules() if isinstance(module, Recurrent))


def hidden_size_for(num_parameters: int, count_at: Callable[[int], int]) -> int:
    """The hidden size with the number of parameters nearest to the one given; `count_at` says how many a size has.

    Weights, biases and heads make it a polynomial of the second degree, so three sizes tell all others.
    """
    a, b, c = np.polyfit([4, 8, 12], [count_at(size) for size in (4, 8, 12)], 2)
    root = (-b + math.sqrt(b * b - 4 * a * (c - num_parameters))) / (2 * a)
    return max(1, round(root))


def run_trial(
    name: str,
    model: Any,
    data: Path,
    kind: str,
    seeds: list[int],
    max_epochs: int | None,
    say: Callable[[str], None],
) -> Trial:
    """Builds the network of `name` with this kind of cell, at the hidden size nearest to the zoo's in parameters,
    trains it from each seed as the zoo's is trained, and measures it. model: its module (build, train, evaluate)."""
    shipped = model.build(data)
    own = cell_of(shipped)
    size = own.hidden_size
    if kind != own.kind:
        size = hidden_size_for(count(shipped), lambda n: count(model.build(data, kind=kind, hidden_size=n)))
    scores, epochs, updates, seconds = [], [], [], []
    for seed in seeds:
        torch.manual_seed(seed)
        network: Network = model.build(data, kind=kind, hidden_size=size)
        trainer = _Counting(network, is_quiet=True, max_epochs=max_epochs)
        begun = time.process_time()
        model.train(network, data, trainer)
        seconds.append(round(time.process_time() - begun, 1))
        result = model.evaluate(network, data)
        metric, score = next(iter(result.metrics.items()))
        scores.append(round(score, 4))
        epochs.append(trainer.num_epochs)
        updates.append(trainer.num_updates)
        say(f"{name}, {kind.upper()} of {size}, seed {seed}: {metric} {score:.4f} after {seconds[-1]:.0f} s")
    with tempfile.TemporaryDirectory() as made, contextlib.redirect_stdout(io.StringIO()):
        folder, manifest = Path(made), Manifest()
        write_graphs(network, folder)
        ms = verify(network, folder).ms_per_step
        network.describe(manifest, folder)
    mode = Mode.Name(manifest.mode).lower().replace("_", "-")
    return Trial(
        name, mode, kind, kind == own.kind, size, count(network), network.state_size, metric, result.unit, list(seeds),
        scores, epochs, updates, seconds, round(ms, 4),
    )  # fmt: skip


class _Counting(Trainer):
    """Says how many epochs and updates a training took."""

    num_epochs = num_updates = 0

    def step(self, loss: Tensor) -> float:
        self.num_updates += 1
        return super().step(loss)

    def fit(self, *given: Any, **named: Any) -> list[float]:
        losses = super().fit(*given, **named)
        self.num_epochs = len(losses)
        return losses

    def cycle(self, epoch: Callable[[], float], validate: Callable[[], float], *, num_epochs: int) -> list[float]:
        losses = super().cycle(epoch, validate, num_epochs=num_epochs)
        self.num_epochs = len(losses)
        return losses
