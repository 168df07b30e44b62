"""Two tasks that need nothing but memory: adding (Hochreiter and Schmidhuber, 1997) and copying (the same; as Arjovsky,
Shah and Bengio, 2016, set it). Drawn at random, of any length."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, one_hot


class Task(ABC):
    """Sequences and what is asked about them. input_size, output_size: of one step; score_name: what `score` gives;
    chance: the score of who remembers nothing; solved: the score that must be passed for the task to be solved;
    learning_rate: Adam's, for gated cells."""

    name: str
    input_size: int
    output_size: int
    score_name: str
    chance: float
    solved: float
    learning_rate: float

    @abstractmethod
    def draw(self, batch: int, length: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """x: float32 [batch, time, input_size], and the goal: it must be kept for about `length` steps."""

    @abstractmethod
    def loss(self, y: Tensor, goal: Tensor) -> Tensor:
        """Of outputs y: float32 [batch, time, output_size]; only the last ones are looked at."""

    @abstractmethod
    def score(self, y: Tensor, goal: Tensor) -> float:
        """What a table says."""

    @abstractmethod
    def is_solved(self, score: float) -> bool:
        """Whether the score counts as solved."""


class Adding(Task):
    """`length` numbers of 0..1, two of them marked, one in each half; their sum is asked for after the last step.

    Who always says 1 has a mean squared error of 1/6.
    """

    name = "adding"
    input_size, output_size = 2, 1
    score_name = "mean squared error"
    chance, solved = 1 / 6, 0.01
    learning_rate = 1e-2

    def draw(self, batch: int, length: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        values = torch.rand(batch, length, generator=random)
        half = length // 2
        first = torch.randint(0, half, (batch, 1), generator=random)
        second = torch.randint(half, length, (batch, 1), generator=random)
        marks = torch.zeros(batch, length).scatter_(1, first, 1.0).scatter_(1, second, 1.0)
        return torch.stack([values, marks], dim=2), (values * marks).sum(1)

    def loss(self, y: Tensor, goal: Tensor) -> Tensor:
        return mse_loss(y[:, -1, 0], goal)

    def score(self, y: Tensor, goal: Tensor) -> float:
        return float(self.loss(y, goal))

    def is_solved(self, score: float) -> bool:
        return score < self.solved


class Copying(Task):
    """Three symbols of 8, `length` blanks, the last of them a sign, and the symbols are asked for again in their order.

    Inputs are one-hot: 8 symbols, a blank, the sign. Arjovsky et al. ask for ten, and count the blanks too.
    """

    name = "copying"
    num_symbols, num_kept = 8, 3
    input_size, output_size = 10, 8
    score_name = "share of symbols right"
    chance, solved = 1 / 8, 0.99
    learning_rate = 2e-2

    def draw(self, batch: int, length: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        kept = torch.randint(0, self.num_symbols, (batch, self.num_kept), generator=random)
        blanks = torch.full((batch, length + self.num_kept), self.num_symbols)
        blanks[:, length - 1] = self.num_symbols + 1
        return one_hot(torch.cat([kept, blanks], dim=1), self.input_size).float(), kept

    def loss(self, y: Tensor, goal: Tensor) -> Tensor:
        return cross_entropy(y[:, -self.num_kept :].flatten(0, 1), goal.flatten())

    def score(self, y: Tensor, goal: Tensor) -> float:
        return float((y[:, -self.num_kept :].argmax(2) == goal).float().mean())

    def is_solved(self, score: float) -> bool:
        return score > self.solved
