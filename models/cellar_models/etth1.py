"""`python -m cellar_models.etth1`: the recipe of `forecast` on the ETTh1 benchmark, evaluated only.

The data's licence lets nobody share a changed copy, so nothing made from them is kept: neither weights nor forecasts.
An LSTM reads the hours of seven standardised variables; after each hour it gives the next 24 of all seven.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from cellar_models.data import DataChanged, DataMissing, data_folder, read
from cellar_models.recurrent import Recurrent
from cellar_models.training import Trainer, training_numbers

SHA256 = "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"
COLUMNS = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
# The benchmark's months: 12 to learn from, 4 to look at, 4 to test on.
SPLIT = (8640, 11520, 14400)
DAY, WEEK = 24, 168
STREAMS, PIECE = 24, 72
# MSE and MAE at 24 hours of the LSTM with attention of Zhou et al., AAAI 2021: all seven by one network, OT by its own.
PUBLISHED = {"seven variables, mean of 1 to 24": (0.650, 0.624), "OT, mean of 1 to 24": (0.114, 0.272)}


@dataclass(frozen=True)
class Setting:
    """What `--choose` chooses by the validation months."""

    hidden_size: int
    dropout: float
    learning_rate: float


SETTINGS = [Setting(*each) for each in itertools.product((32, 64), (0.5, 0.7), (2e-3, 5e-3))]
CHOSEN = Setting(32, 0.7, 2e-3)


class Etth1(nn.Module):
    """week: float32 [batch, time, 168, 7], the last 168 hours at each hour, the newest last; clock: [batch, time, 4] ->
    the next 24 hours [batch, time, 24, 7], and the next state.

    A forecast is the last value, a sum of how much the hours of the week were above it, by weights that are learned for
    each hour ahead (Zeng et al., AAAI 2023), and what the LSTM adds."""

    def __init__(self, hidden_size: int = CHOSEN.hidden_size, dropout: float = CHOSEN.dropout) -> None:
        super().__init__()
        self.lstm = Recurrent("lstm", len(COLUMNS) + 4, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, DAY * len(COLUMNS))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # at first half the way from the last value to the one a day before
        self.own = nn.Linear(WEEK, DAY)
        with torch.no_grad():
            self.own.weight.copy_(torch.eye(DAY, WEEK).roll(WEEK - DAY, dims=1) * 0.5)
            self.own.bias.zero_()

    def forward(self, week: Tensor, clock: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.lstm(torch.cat([week[:, :, -1], clock], dim=-1).clamp(-5.0, 5.0), state)
        last = week[:, :, -1:]
        line = self.own((week - last).transpose(-1, -2)).transpose(-1, -2)
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
    """Of the hours from `first` to `end`: the week up to each [hours, 168, 7], and the day after it [hours, 24, 7]."""
    weeks, days = (
        np.lib.stride_tricks.sliding_window_view(values, length, axis=0).transpose(0, 2, 1) for length in (WEEK, DAY)
    )
    return torch.from_numpy(weeks[first - WEEK + 1 : end - WEEK + 1].copy()), torch.from_numpy(
        days[first + 1 : end + 1].copy()
    )


def train(network: Etth1, data: Path, trainer: Trainer, num_epochs: int = 60) -> float:
    """The first 12 months as 24 parallel streams, truncated backpropagation through 72 hours, the state carried on; the
    weights of the epoch that does best on the next four months, whose mean squared error there is given."""
    values, clock = load(data)
    first = WEEK - 1
    per_stream = (SPLIT[0] - DAY - first) // STREAMS
    past, future = _windows(values, first, first + per_stream * STREAMS)
    inputs, targets = (each.unflatten(0, (STREAMS, per_stream)) for each in (past, future))
    clocks = torch.from_numpy(clock[first : first + per_stream * STREAMS]).reshape(STREAMS, per_stream, 4)

    def epoch() -> float:
        state, losses = torch.zeros(STREAMS, network.lstm.state_size), []
        for at in range(int(torch.randint(0, PIECE, ())), per_stream, PIECE):
            piece = slice(at, at + PIECE)
            y, state = network(inputs[:, piece], clocks[:, piece], state)
            losses.append(trainer.step(mse_loss(y, targets[:, piece])))
            state = state.detach()
        return sum(losses) / len(losses)

    def validate() -> float:
        return float(np.mean(_errors(network, data, *SPLIT[:2])[0] ** 2))

    return min(trainer.fit(epoch, validate, num_epochs=num_epochs, patience=12))


@torch.no_grad()
def _errors(network: Etth1, data: Path, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors [hours, 24 hours ahead, 7] on the hours first..end of the network, of the last value and of the day
    before; every hour whose next 24 lie in the part. The network has read the day before."""
    values, clock = load(data)
    start = first - DAY
    past, future = _windows(values, start, end - DAY)
    y, _ = network(
        past[None], torch.from_numpy(clock[start : end - DAY])[None], torch.zeros(1, network.lstm.state_size)
    )
    guesses = y[0], past[:, -1:].expand_as(future), past[:, -DAY:]
    # the benchmark's first forecast is made at the last hour before the part
    return tuple((guess - future)[DAY - 1 :].numpy() for guess in guesses)  # type: ignore[return-value]


def _trained(data: Path, setting: Setting, seed: int, max_epochs: int | None) -> tuple[Etth1, float]:
    torch.manual_seed(seed)
    network = Etth1(setting.hidden_size, setting.dropout)
    trainer = Trainer(network, is_quiet=True, max_epochs=max_epochs, learning_rate=setting.learning_rate)
    return network, train(network, data, trainer)


def choose(data: Path, seeds: list[int], max_epochs: int | None) -> Setting:
    """The setting with the lowest mean squared error on the validation months, mean of the seeds; says all of them.
    The test months are not looked at."""
    found = {}
    for setting in SETTINGS:
        losses = [_trained(data, setting, seed, max_epochs)[1] for seed in seeds]
        found[setting] = float(np.mean(losses))
        print(f"{found[setting]:.4f} ({' '.join(f'{loss:.4f}' for loss in losses)}) {setting}", flush=True)
    return min(found, key=lambda setting: found[setting])


MEASURES: dict[str, Any] = {
    "seven variables, 1 hour ahead": np.s_[:, 0, :],
    "seven variables, 24 hours ahead": np.s_[:, -1, :],
    "seven variables, mean of 1 to 24": np.s_[:],
    "OT, 1 hour ahead": np.s_[:, 0, -1],
    "OT, mean of 1 to 24": np.s_[:, :, -1],
}


def study(data: Path, seeds: list[int], max_epochs: int | None) -> dict[str, Any]:
    """MSE and MAE on the test months by measure and forecaster; of the LSTM as a list by seed."""
    rows: dict[str, Any] = {name: {"LSTM": []} for name in MEASURES}
    for seed in seeds:
        network, _ = _trained(data, CHOSEN, seed, max_epochs)
        ours, last, day = _errors(network, data, SPLIT[1], SPLIT[2])
        for name, take in MEASURES.items():
            rows[name]["LSTM"].append(_scores(ours[take]))
            rows[name] |= {"last value": _scores(last[take]), "the day before": _scores(day[take])}
    return {
        "parameters": sum(p.numel() for p in Etth1().parameters()),
        "hidden_size": CHOSEN.hidden_size,
        "seeds": seeds,
        "measures": rows,
        "published": PUBLISHED,
    }


def _scores(errors: np.ndarray) -> tuple[float, float]:
    return round(float((errors**2).mean()), 4), round(float(np.abs(errors).mean()), 4)


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints the table, keeps it where `--findings` says: no weights and no forecasts."""
    parser = argparse.ArgumentParser(prog="python -m cellar_models.etth1", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--seeds", type=int, default=3, help="trainings, from the seeds 1, 2, ...")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--choose", action="store_true", help="which setting does best on the validation months")
    parser.add_argument("--findings", type=Path, help="a JSON file to write (docs/zoo.md is made from docs/zoo/)")
    options = parser.parse_args(arguments)
    seeds = list(range(1, options.seeds + 1))
    try:
        with training_numbers():
            if options.choose:
                print(f"chosen: {choose(options.data, seeds, options.epochs)}")
                return 0
            found = study(options.data, seeds, options.epochs)
    except (DataMissing, DataChanged) as error:
        print(f"etth1: {error}", file=sys.stderr)
        return 1
    print("| standardised, test months: MSE / MAE | LSTM, by seed | last value | the day before |\n|---|---|---|---|")
    for name, row in found["measures"].items():
        cells = ["{:.3f} / {:.3f}".format(*each) for each in (*row["LSTM"], row["last value"], row["the day before"])]
        print(f"| {name} | {'; '.join(cells[:-2])} | {cells[-2]} | {cells[-1]} |")
    if options.findings:
        options.findings.parent.mkdir(parents=True, exist_ok=True)
        options.findings.write_text(json.dumps(found) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
