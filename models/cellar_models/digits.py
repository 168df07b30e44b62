"""digits, one-to-one: one handwritten digit in, one class out. An RNN used for a single step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from cellar_proto.v1.manifest_pb2 import ONE_TO_ONE, ROWS, Manifest, StepSpec
from cellar_proto.v1.tensor_pb2 import FLOAT32
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cellar_models import oracle
from cellar_models.network import Network
from cellar_models.recurrent import Recurrent
from cellar_models.training import Result, Trainer


class Digits(Network):
    """x: float32 [batch, time, 64] grey values 0..16 -> y: float32 [batch, time, 10] probabilities."""

    name = "digits"

    def __init__(self, hidden_size: int = 64, kind: str = "rnn") -> None:
        super().__init__()
        self.rnn = Recurrent(kind, 64, hidden_size)
        self.head = nn.Linear(hidden_size, 10)
        self.state_size = self.rnn.state_size

    def logits(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.rnn(x / 16.0 - 0.3, state)
        return self.head(y), state

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.logits(x, state)
        return torch.softmax(y, dim=-1), state

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, state = oracle.recurrent(self.rnn, x / 16.0 - 0.3, state)
        return oracle.softmax(oracle.linear(self.head, y)), state

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, 17, (batch, time, 64)).astype(np.float32)

    def describe(self, manifest: Manifest, folder: Path) -> None:
        manifest.description = "Which digit is this 8 x 8 image? One vector in, one class out."
        manifest.mode = ONE_TO_ONE
        manifest.input.CopyFrom(StepSpec(dtype=FLOAT32, shape=[64], names=[f"p{i}" for i in range(64)]))
        manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[10], names=[str(i) for i in range(10)]))
        manifest.labels.extend(str(i) for i in range(10))
        manifest.position_unit = ROWS
        manifest.architecture = f"{self.rnn.kind.upper()}, 1 layer of {self.rnn.hidden_size}"
        manifest.parts.extend(self.rnn.parts(self.rnn.kind))
        manifest.licence = "CC BY 4.0 (data); Apache-2.0 (weights)"
        manifest.data = "UCI optical recognition of handwritten digits, as in scikit-learn's load_digits"


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """images float32 [1797, 64], classes [1797], and the part of each: 0 train, 1 validation, 2 test (index mod 5)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = np.choose(np.arange(len(digits.target)) % 5, [0, 0, 0, 1, 2])
    return digits.data.astype(np.float32), digits.target, part


def build(data: Path, kind: str = "rnn", hidden_size: int = 64) -> Digits:
    return Digits(hidden_size, kind)


def train(network: Digits, data: Path, trainer: Trainer) -> None:
    """Cross entropy on single images, from the zero state."""
    images, classes, part = load()
    x, y = torch.from_numpy(images)[:, None], torch.from_numpy(classes)

    def zeros(n: int) -> Tensor:
        return torch.zeros(n, network.state_size)

    def epoch() -> float:
        total = 0.0
        chosen = torch.from_numpy(np.flatnonzero(part == 0))
        for rows in chosen[torch.randperm(len(chosen))].split(32):
            noisy = x[rows] + torch.randn_like(x[rows])
            loss = cross_entropy(network.logits(noisy, zeros(len(rows)))[0][:, 0], y[rows], label_smoothing=0.05)
            total += trainer.step(loss) * len(rows)
        return total / len(chosen)

    def validate() -> float:
        rows = np.flatnonzero(part == 1)
        return float(cross_entropy(network.logits(x[rows], zeros(len(rows)))[0][:, 0], y[rows]))

    trainer.fit(epoch, validate, num_epochs=60, patience=10)


def evaluate(network: Digits, data: Path) -> Result:
    """Accuracy on the test fifth, beside the nearest class mean and logistic regression on the same split."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestCentroid

    images, classes, part = load()
    test, learn = part == 2, part == 0
    with torch.no_grad():
        y = network(torch.from_numpy(images[test])[:, None], torch.zeros(int(test.sum()), network.state_size))[0]
    accuracy = float((y[:, 0].argmax(1).numpy() == classes[test]).mean())
    mean = NearestCentroid().fit(images[learn], classes[learn]).score(images[test], classes[test])
    linear = LogisticRegression(max_iter=2000, C=0.01).fit(images[learn], classes[learn])
    return Result(
        metrics={"test accuracy": accuracy},
        baselines={
            "nearest class mean": float(mean),
            "logistic regression": float(linear.score(images[test], classes[test])),
        },
        unit="share of 359 images",
        is_better=accuracy > mean,
        notes="Split by index mod 5: 0, 1, 2 train, 3 validation, 4 test.",
    )


def write_samples(folder: Path, data: Path) -> None:
    """100 test images as CSV, p0 .. p63 and the label."""
    images, classes, part = load()
    chosen = np.flatnonzero(part == 2)[:100]
    header = ",".join([*(f"p{i}" for i in range(64)), "label"])
    rows = [",".join(f"{v:g}" for v in [*images[i], classes[i]]) for i in chosen]
    (folder / "digits.csv").write_text("\n".join([header, *rows]) + "\n")
