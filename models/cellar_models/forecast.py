"""forecast, many-to-many aligned: hours of air and weather in, the next hour's PM2.5 out after each. An LSTM."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import torch
from cellar_proto.v1.manifest_pb2 import MANY_TO_MANY_ALIGNED, ROWS, Manifest, StepSpec
from cellar_proto.v1.tensor_pb2 import FLOAT32
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from cellar_models import oracle
from cellar_models.data import read
from cellar_models.network import Network
from cellar_models.plot import Panel, draw
from cellar_models.recurrent import Recurrent
from cellar_models.training import Result, Trainer

SHA256 = "892e9559205d16d32623135c127a3951c12e46ea1e0b3093e107ce89a9fd60e2"
COLUMNS = ["pm2.5", "is_missing", "DEWP", "TEMP", "PRES", "Iws", "Is", "Ir", "NE", "NW", "SE", "cv", "hour", "month"]
UNITS = ["ug/m3", "", "C", "C", "hPa", "m/s", "h", "h", "", "", "", "", "h", ""]
# A change of the logarithm of PM2.5 is what the head gives; this is its typical size.
SCALE = 0.25


class Forecast(Network):
    """x: float32 [batch, time, 14] raw values -> y: float32 [batch, time, 1], PM2.5 of the next hour in ug/m3.

    Normalisation is in the graph: logarithms of the skewed columns, mean and spread of the others, clipped to 5. The
    head gives the change of log(PM2.5 + 1), so that an untrained head repeats the last value.
    """

    name = "forecast"
    mean: Tensor
    spread: Tensor

    def __init__(self, hidden_size: int = 64, kind: str = "lstm") -> None:
        super().__init__()
        self.lstm = Recurrent(kind, len(COLUMNS) + 2, hidden_size)
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(len(COLUMNS) + 2))
        self.register_buffer("spread", torch.ones(len(COLUMNS) + 2))
        self.state_size = self.lstm.state_size

    def features(self, x: Tensor) -> Tensor:
        """[batch, time, 14] -> [batch, time, 16], before mean and spread."""
        skewed = torch.log1p(torch.relu(x[..., 0:1]))
        amounts = torch.log1p(torch.relu(x[..., 5:8]))
        hour, month = x[..., 12:13] * (2 * torch.pi / 24), x[..., 13:14] * (2 * torch.pi / 12)
        return torch.cat(
            [skewed, x[..., 1:5], amounts, x[..., 8:12], hour.sin(), hour.cos(), month.sin(), month.cos()], dim=-1
        )

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        scaled = ((self.features(x) - self.mean) / self.spread).clamp(-5.0, 5.0)
        y, state = self.lstm(scaled, state)
        # (v + 1) e^change - 1 with v the last value: the change of the logarithm, bounded to a factor of e^3
        change = (self.head(y) * SCALE).clamp(-3.0, 3.0)
        return torch.relu((torch.relu(x[..., 0:1]) + 1.0) * torch.exp(change) - 1.0), state

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = x.astype(np.float64)
        hour, month = x[..., 12:13] * (2 * np.pi / 24), x[..., 13:14] * (2 * np.pi / 12)
        values = np.concatenate(
            [
                np.log1p(np.maximum(x[..., 0:1], 0)),
                x[..., 1:5],
                np.log1p(np.maximum(x[..., 5:8], 0)),
                x[..., 8:12],
                np.sin(hour),
                np.cos(hour),
                np.sin(month),
                np.cos(month),
            ],
            axis=-1,
        )
        scaled = np.clip((values - self.mean.numpy().astype(np.float64)) / self.spread.numpy(), -5, 5)
        y, state = oracle.recurrent(self.lstm, scaled, state)
        change = np.clip(oracle.linear(self.head, y) * SCALE, -3, 3)
        return np.maximum((np.maximum(x[..., 0:1], 0) + 1) * np.exp(change) - 1, 0), state

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        x = rng.uniform(0, 1, (batch, time, len(COLUMNS)))
        low = [0, 0, -40, -19, 991, 0, 0, 0, 0, 0, 0, 0, 0, 1]
        high = [900, 1, 28, 42, 1046, 500, 27, 36, 1, 1, 1, 1, 23, 12]
        return (np.array(low) + x * (np.array(high) - low)).astype(np.float32)

    def describe(self, manifest: Manifest, folder: Path) -> None:
        manifest.description = "The next hour's PM2.5 in Beijing from the stream of hours so far."
        manifest.mode = MANY_TO_MANY_ALIGNED
        manifest.input.CopyFrom(StepSpec(dtype=FLOAT32, shape=[len(COLUMNS)], names=COLUMNS, units=UNITS))
        manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[1], names=["next_pm2.5"], units=["ug/m3"]))
        manifest.position_unit = ROWS
        manifest.architecture = f"{self.lstm.kind.upper()}, 1 layer of {self.lstm.hidden_size}"
        manifest.parts.extend(self.lstm.parts(self.lstm.kind))
        manifest.licence = "CC BY 4.0 (data, by its page at UCI); Apache-2.0 (weights)"
        manifest.data = "Beijing PM2.5, Liang et al., Proc. R. Soc. A 471:20150257 (2015)"


def load(data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x float32 [43824, 14]; the true PM2.5 of each hour float32 [43824], NaN where missing; its year [43824].

    A missing PM2.5 is filled with the last one seen (0 before the first) and marked in `is_missing`.
    """
    rows = list(csv.DictReader(io.StringIO(read(data, "ts_beijing_pm25", "pollution.csv", SHA256))))
    x = np.zeros((len(rows), len(COLUMNS)), np.float32)
    truth = np.full(len(rows), np.nan, np.float32)
    last = 0.0
    for i, row in enumerate(rows):
        missing = row["pm2.5"] == "NA"
        if not missing:
            truth[i] = last = float(row["pm2.5"])
        x[i, 0], x[i, 1] = last, missing
        x[i, 2:8] = [float(row[name]) for name in COLUMNS[2:8]]
        x[i, 8 + COLUMNS[8:12].index(row["cbwd"])] = 1.0
        x[i, 12], x[i, 13] = float(row["hour"]), float(row["month"])
    return x, truth, np.array([int(row["year"]) for row in rows])


def build(data: Path, kind: str = "lstm", hidden_size: int = 64) -> Forecast:
    network = Forecast(hidden_size, kind)
    x, _, year = load(data)
    values = network.features(torch.from_numpy(x[year <= 2012])[None])[0]
    network.mean.copy_(values.mean(0))
    network.spread.copy_(values.std(0).clamp(min=0.05))
    return network


def train(network: Forecast, data: Path, trainer: Trainer) -> None:
    """2010 to 2012 as 24 parallel streams; truncated backpropagation through 48 hours, the state carried on."""
    x, truth, year = load(data)
    chosen = np.flatnonzero(year <= 2012)
    per_stream = len(chosen) // 24
    target = np.append(truth[1:], np.nan).astype(np.float32)

    def streams(a: np.ndarray) -> Tensor:
        a = a[chosen][: per_stream * 24]
        return torch.from_numpy(a.reshape(24, per_stream, *a.shape[1:]).copy())

    inputs, targets = streams(x), streams(target)
    valid = np.flatnonzero(year == 2013)
    valid_x, valid_y = torch.from_numpy(x[valid])[None], torch.from_numpy(target[valid])

    def loss_of(y: Tensor, goal: Tensor) -> Tensor:
        known = ~goal.isnan()
        return smooth_l1_loss(y[known] / 25.0, goal[known] / 25.0)

    def epoch() -> float:
        state = torch.zeros(24, network.state_size)
        losses = []
        offset = int(torch.randint(0, 48, ()))
        for at in range(offset, per_stream - 1, 48):
            y, state = network(inputs[:, at : at + 48], state)
            losses.append(trainer.step(loss_of(y[..., 0], targets[:, at : at + 48])))
            state = state.detach()
        return sum(losses) / len(losses)

    def validate() -> float:
        y, _ = network(valid_x, torch.zeros(1, network.state_size))
        known = ~valid_y.isnan()
        return float(((y[0, :, 0] - valid_y)[known] ** 2).mean().sqrt())

    trainer.fit(epoch, validate, num_epochs=60, patience=8)


def evaluate(network: Forecast, data: Path) -> Result:
    """RMSE over the hours of 2014 whose PM2.5 is known, one stream from 2014's first hour, beside naive forecasts."""
    x, truth, year = load(data)
    test = np.flatnonzero(year == 2014)
    target = np.append(truth[1:], np.nan)[test]
    known = ~np.isnan(target)
    guess = _forecast(network, x[test])

    def rmse(guess: np.ndarray) -> float:
        return float(np.sqrt(np.mean((guess[known] - target[known]) ** 2)))

    ours = rmse(guess)
    naive = {
        "last value": rmse(x[test, 0]),
        "last value and half of the last change": rmse(x[test, 0] + 0.5 * (x[test, 0] - x[test - 1, 0])),
        "value of the same hour a day before": rmse(x[test - 23, 0]),
    }
    best = min(naive.values())
    return Result(
        metrics={"test RMSE": ours},
        baselines=naive,
        unit="ug/m3, lower is better",
        is_better=ours < best,
        notes=(
            "2010 to 2012 train, 2013 validation, 2014 test; hours with unknown PM2.5 are no targets.\n"
            f"The margin over the best naive forecast is {100 * (1 - ours / best):.1f} % of its RMSE. Two weeks of it: "
            "docs/forecast.svg (`cellar-models plot forecast`).\n" + NOTES
        ),
        more={"margin over the best naive forecast, %": 100 * (1 - ours / best), "hours": float(known.sum())},
    )


NOTES = ""


def _forecast(network: Forecast, x: np.ndarray) -> np.ndarray:
    """The next hour's PM2.5 after each hour of x [hours, 14], from the zero state."""
    with torch.no_grad():
        y, _ = network(torch.from_numpy(x)[None], torch.zeros(1, network.state_size))
    return y[0, :, 0].numpy()


def plot(network: Forecast, data: Path) -> str:
    """An SVG: PM2.5 in two weeks of 2014 as it was and as it was forecast an hour before; and what the forecasts of the
    whole year missed, summed up, beside what the last value missed."""
    x, truth, year = load(data)
    x, truth = x[year == 2014], truth[year == 2014]
    guess = _forecast(network, x)
    weeks = slice(24 * 44, 24 * 58)  # 14 to 27 February
    misses = {"last value": x[:-1, 0] - truth[1:], "forecast": guess[:-1] - truth[1:]}
    summed = {name: np.nancumsum(np.square(each, dtype=np.float64))[::24] for name, each in misses.items()}
    return draw(
        [
            Panel("PM2.5, ug/m3", {"measured": truth[weeks], "forecast": guess[weeks.start - 1 : weeks.stop - 1]}),
            Panel("squared misses of 2014", {name: each / 1e6 for name, each in summed.items()}),
        ],
        "PM2.5 in Beijing, forecast one hour before: 14 to 27 February; sum of all misses of the year, 10^6 (ug/m3)^2",
    )


def write_samples(folder: Path, data: Path) -> None:
    """The first 1,500 hours of 2014."""
    x, _, year = load(data)
    rows = [",".join(f"{v:g}" for v in row) for row in x[year == 2014][:1500]]
    (folder / "forecast.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
