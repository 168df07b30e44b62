"""`python -m cellar_models.etth1`: the recipe of `forecast` on the ETTh1 benchmark, evaluated only.

The data's licence lets nobody share a changed copy, so nothing made from them is kept: neither weights nor forecasts.
An LSTM reads the hours of seven standardised variables; after each hour it gives the next 24 of all seven.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from cellar_models.data import DataChanged, DataMissing, data_folder, read
from cellar_models.recurrent import Recurrent
from cellar_models.training import Trainer

SHA256 = "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"
COLUMNS = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
# The benchmark's months: 12 to learn from, 4 to look at, 4 to test on.
SPLIT = (8640, 11520, 14400)
DAY = 24
STREAMS, PIECE = 24, 72


class Etth1(nn.Module):
    """day: float32 [batch, time, 24, 7], the last 24 hours at each hour, the newest last; clock: [batch, time, 4] ->
    the next 24 hours [batch, time, 24, 7], and the next state.

    A forecast is the value a day before, or the last one, in shares that are learned for each hour ahead, and what
    the LSTM adds to it."""

    def __init__(self, hidden_size: int = 64) -> None:
        super().__init__()
        self.lstm = Recurrent("lstm", len(COLUMNS) + 4, hidden_size)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(hidden_size, DAY * len(COLUMNS))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.own = nn.Linear(DAY, DAY)
        with torch.no_grad():
            self.own.weight.copy_(torch.eye(DAY) * 0.5)
            self.own.bias.zero_()

    def forward(self, day: Tensor, clock: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.lstm(torch.cat([day[:, :, -1], clock], dim=-1).clamp(-5.0, 5.0), state)
        last = day[:, :, -1:]
        line = self.own((day - last).transpose(-1, -2)).transpose(-1, -2)
        return last + line + self.head(self.dropout(y)).unflatten(-1, (DAY, len(COLUMNS))), state


def load(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """values float32 [14400, 7], standardised by the first 8,640 hours; clock float32 [14400, 4]."""
    rows = list(csv.DictReader(io.StringIO(read(data, "ts_etth1", "ETTh1.csv", SHA256))))[: SPLIT[-1]]
    values = np.array([[float(row[name]) for name in COLUMNS] for row in rows])
    values = (values - values[: SPLIT[0]].mean(0)) / values[: SPLIT[0]].std(0)
    hour = np.array([int(row["date"][11:13]) for row in rows]) * (2 * np.pi / 24)
    week = np.arange(len(rows)) * (2 * np.pi / (24 * 7))
    clock = np.stack([np.sin(hour), np.cos(hour), np.sin(week), np.cos(week)], axis=-1)
    return values.astype(np.float32), clock.astype(np.float32)


def _windows(values: np.ndarray, first: int, end: int) -> tuple[Tensor, Tensor]:
    """Of the hours from `first` to `end`: the day up to each [hours, 24, 7], and the day after it."""
    all_ = np.lib.stride_tricks.sliding_window_view(values, DAY, axis=0).transpose(0, 2, 1)
    past, future = all_[first - DAY + 1 : end - DAY + 1], all_[first + 1 : end + 1]
    return torch.from_numpy(past.copy()), torch.from_numpy(future.copy())


def train(network: Etth1, data: Path, trainer: Trainer, num_epochs: int = 30) -> None:
    """The first 12 months as 24 parallel streams, truncated backpropagation through 72 hours, the state carried on;
    the weights of the epoch that does best on the next four months."""
    values, clock = load(data)
    first = DAY - 1
    per_stream = (SPLIT[0] - DAY - first) // STREAMS
    past, future = _windows(values, first, first + per_stream * STREAMS)
    inputs, targets = (each.reshape(STREAMS, per_stream, DAY, len(COLUMNS)) for each in (past, future))
    clocks = torch.from_numpy(clock[first : first + per_stream * STREAMS]).reshape(STREAMS, per_stream, 4)

    def epoch() -> float:
        state, losses = torch.zeros(STREAMS, network.lstm.state_size), []
        for at in range(int(torch.randint(0, PIECE, ())), per_stream, PIECE):
            piece = slice(at, at + PIECE)
            y, state = network(inputs[:, piece], clocks[:, piece], state)
            losses.append(trainer.step(mse_loss(y, targets[:, piece])))
            state = state.detach()
        return sum(losses) / len(losses)

    trainer.fit(epoch, lambda: float(np.mean(_errors(network, data, *SPLIT[:2])[0])), num_epochs=num_epochs, patience=6)


@torch.no_grad()
def _errors(network: nn.Module, data: Path, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean squared errors [24 hours ahead, 7] on the hours first..end of the network, of the last value and of the day
    before; every hour whose next 24 lie in the part. The network has read the day before."""
    values, clock = load(data)
    start = first - DAY
    past, future = _windows(values, start, end - DAY)
    y, _ = network(
        past[None], torch.from_numpy(clock[start : end - DAY])[None], torch.zeros(1, network.lstm.state_size)
    )
    guesses = y[0], past[:, -1:].expand_as(past), past
    # the benchmark's first forecast is made at the last hour before the part
    return tuple(((guess - future)[DAY - 1 :] ** 2).mean(0).numpy() for guess in guesses)  # type: ignore[return-value]


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints the table, keeps nothing."""
    parser = argparse.ArgumentParser(prog="python -m cellar_models.etth1", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=None)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    network = Etth1()
    try:
        train(network, options.data, Trainer(network, max_epochs=options.epochs))
    except (DataMissing, DataChanged) as error:
        print(f"etth1: {error}", file=sys.stderr)
        return 1
    ours, last, day = _errors(network, options.data, SPLIT[1], SPLIT[2])
    print("| standardised MSE on the test months | LSTM | last value | the day before |\n|---|---|---|---|")
    for name, take in (
        ("seven variables, 1 hour ahead", np.s_[0, :]),
        ("seven variables, 24 hours ahead", np.s_[-1, :]),
        ("seven variables, mean of 1 to 24", np.s_[:, :]),
        ("OT, 1 hour ahead", np.s_[0, -1]),
        ("OT, mean of 1 to 24", np.s_[:, -1]),
    ):
        print(f"| {name} | {ours[take].mean():.3f} | {last[take].mean():.3f} | {day[take].mean():.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
