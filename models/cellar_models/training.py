"""The loop that all networks are trained by: clipped gradients, validation, early stopping, the best weights kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class Result:
    """What an evaluation found: metrics and naive baselines by name, in `unit`; `is_better` than the naive one."""

    metrics: dict[str, float]
    baselines: dict[str, float]
    unit: str
    is_better: bool
    notes: str = ""
    more: dict[str, float] = field(default_factory=dict)


def equal_lengths(lengths: Iterable[int], size: int, *, is_shuffled: bool = True) -> Iterator[list[int]]:
    """Batches of at most `size` sequences of one length each, by index, so that no recurrent step is padded; shuffled
    by torch's generator, or in order of first appearance of their length."""
    by_length: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        by_length.setdefault(length, []).append(i)
    chosen: list[Tensor] = []
    for same in by_length.values():
        order = torch.randperm(len(same)) if is_shuffled else torch.arange(len(same))
        chosen += torch.tensor(same)[order].split(size)
    for k in torch.randperm(len(chosen)).tolist() if is_shuffled else range(len(chosen)):
        yield chosen[k].tolist()


@contextmanager
def training_numbers() -> Iterator[None]:
    """One thread, and numbers next to zero taken for zero: as gradients far back in time they cost many times as much
    as others."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class Trainer:
    """AdamW with the gradient's norm clipped (Pascanu et al., 2013) against explosion through time."""

    def __init__(
        self,
        network: nn.Module,
        *,
        learning_rate: float = 2e-3,
        weight_decay: float = 1e-2,
        max_norm: float = 1.0,
        is_quiet: bool = False,
        max_epochs: int | None = None,
        keep: Callable[[nn.Module], None] | None = None,
    ) -> None:
        self.network = network
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
        self.max_norm = max_norm
        self.is_quiet = is_quiet
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.keep = keep

    def step(self, loss: Tensor) -> float:
        """One update by backpropagation (through time, over what the loss hangs on); the loss."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        self.optimizer.step()
        return float(loss.detach())

    def set_rate(self, progress: float, *, peak: float = 2.0, warm: float = 0.05) -> None:
        """One cycle (Smith and Topin, 2018): the step size rises to `peak` times the learning rate within the share
        `warm` of the training, and falls to nothing as half a cosine. progress: 0 to 1."""
        share = progress / warm if progress < warm else (1 + math.cos(math.pi * (progress - warm) / (1 - warm))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * peak * share

    def cycle(self, epoch: Callable[[], float], validate: Callable[[], float], *, num_epochs: int) -> list[float]:
        """Trains for `num_epochs`, whatever the validation says: for a schedule that ends at nothing, whose last
        weights are the ones to take. `keep` has the weights after every epoch. Gives the validation losses."""
        losses = []
        with tqdm(total=num_epochs, disable=self.is_quiet, unit="epoch") as bar:
            for _ in range(num_epochs):
                self.network.train()
                train_loss = epoch()
                self.network.eval()
                with torch.no_grad():
                    losses.append(validate())
                if self.keep is not None:
                    self.keep(self.network)
                bar.update()
                bar.set_postfix(train=f"{train_loss:.4f}", valid=f"{losses[-1]:.4f}")
        return losses

    def fit(
        self,
        epoch: Callable[[], float],
        validate: Callable[[], float],
        *,
        num_epochs: int,
        patience: int,
        decay: float = 0.97,
    ) -> list[float]:
        """Trains until `patience` epochs brought nothing; leaves the network with the weights of the lowest validation
        loss. `epoch` trains once over the data and gives its mean loss; after it the learning rate is
        multiplied by `decay`. Gives the validation losses."""
        best, losses = float("inf"), []
        weights = copy.deepcopy(self.network.state_dict())
        with tqdm(total=min(num_epochs, self.max_epochs or num_epochs), disable=self.is_quiet, unit="epoch") as bar:
            for _ in range(bar.total):
                self.network.train()
                train_loss = epoch()
                self.network.eval()
                with torch.no_grad():
                    losses.append(validate())
                if losses[-1] < best:
                    best, weights = losses[-1], copy.deepcopy(self.network.state_dict())
                    best_at = len(losses)
                bar.update()
                bar.set_postfix(train=f"{train_loss:.4f}", valid=f"{losses[-1]:.4f}", best=f"{best:.4f}")
                if len(losses) - best_at >= patience:
                    break
                for group in self.optimizer.param_groups:
                    group["lr"] *= decay
        self.network.load_state_dict(weights)
        self.network.eval()
        return losses
