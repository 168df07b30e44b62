"""One recurrent layer and a head, by the kinds of cell that a study compares, and how they are trained on a task."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cellar_models.lessons.tasks import Task
from cellar_models.recurrent import Recurrent

BATCH = 20
# Updates over whose fresh batches a score is a mean.
WINDOW = 50
RNN_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Cell:
    """A kind of cell and how it starts.

    start: "" as Recurrent does (orthogonal, an LSTM's forget bias 1), "torch" as nn.RNN, nn.LSTM and nn.GRU do,
    "length": an LSTM's forget bias is the logarithm of a random number below the length, its input bias the negative
    of that (Tallec and Ollivier, 2018), "gain": recurrent weights orthogonal times 1.5.
    """

    label: str
    kind: str
    hidden_size: int
    start: str = ""


RNN_TORCH = Cell("RNN, PyTorch's start", "rnn", 80, "torch")
RNN = Cell("RNN, orthogonal start", "rnn", 80)
RNN_GAIN = Cell("RNN, orthogonal times 1.5", "rnn", 80, "gain")
LSTM_TORCH = Cell("LSTM, PyTorch's start", "lstm", 40, "torch")
LSTM = Cell("LSTM, forget bias 1", "lstm", 40)
LSTM_LENGTH = Cell("LSTM, forget bias for the length", "lstm", 40, "length")
GRU = Cell("GRU", "gru", 46)


class Learner(nn.Module):
    """forward(x: float32 [batch, time, input_size]) -> y: float32 [batch, time, output_size], from the zero state."""

    def __init__(self, cell: Cell, input_size: int, output_size: int, length: int) -> None:
        super().__init__()
        self.recurrent = Recurrent(cell.kind, input_size, cell.hidden_size)
        self.head = nn.Linear(cell.hidden_size, output_size)
        layers, n = self.recurrent.layers, cell.hidden_size
        if cell.start == "torch":
            layers.reset_parameters()
        elif cell.start == "gain":
            layers.weight_hh_l0.data.mul_(1.5)
        elif cell.start == "length":
            bias = torch.log(1 + torch.rand(n) * (length - 2))
            layers.bias_ih_l0.data[:n] = -bias
            layers.bias_ih_l0.data[n : 2 * n] = bias

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.recurrent(x, x.new_zeros(len(x), self.recurrent.state_size))
        return self.head(y)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())


@dataclass
class Training:
    """What a training went through: loss, score and norm of the gradient (before clipping) of each update; updates it
    took until the task was solved (0: it was not); score on 1,000 fresh sequences at the end."""

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    solved_after: int = 0
    final: float = float("nan")

    def window(self) -> float:
        """Mean score of the last WINDOW updates."""
        last = self.scores[-WINDOW:]
        return sum(last) / len(last)


def learn(
    learner: Learner, task: Task, length: int, optimizer: torch.optim.Optimizer, *, num_updates: int, seed: int,
    max_norm: float = 1.0,
) -> Training:  # fmt: skip
    """Trains on fresh batches until the task is solved, judged every WINDOW updates by the scores that the batches had
    before they were learned from, or for `num_updates`. max_norm: of the gradient, infinite: not clipped."""
    random = torch.Generator().manual_seed(seed)
    found = Training()
    for k in range(1, num_updates + 1):
        x, goal = task.draw(BATCH, length, random)
        y = learner(x)
        loss = task.loss(y, goal)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(learner.parameters(), max_norm)
        optimizer.step()
        found.losses.append(float(loss.detach()))
        found.norms.append(float(norm))
        found.scores.append(task.score(y.detach(), goal))
        if k % WINDOW == 0 and task.is_solved(found.window()):
            found.solved_after = k
            break
    with torch.no_grad():
        x, goal = task.draw(1000, length, random)
        found.final = task.score(learner(x), goal)
    return found


def adam(learner: Learner, task: Task) -> torch.optim.Optimizer:
    """At the task's rate, or an RNN's."""
    rate = RNN_LEARNING_RATE if learner.recurrent.kind == "rnn" else task.learning_rate
    return torch.optim.Adam(learner.parameters(), lr=rate)
