"""spoken-digits, many-to-one: sound in, as samples and in pieces of any size; after every 20 ms, which digit is being
said. Log-mel bands inside the graph, then an LSTM."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cellar_proto.v1.manifest_pb2 import MANY_TO_ONE, SAMPLES, Manifest, StatePart, StepSpec
from cellar_proto.v1.tensor_pb2 import FLOAT32, INT16
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cellar_models import oracle
from cellar_models.network import Network
from cellar_models.recordings import FRAME, SAMPLE_RATE, Recordings, batches, change, load
from cellar_models.recurrent import Recurrent
from cellar_models.training import Result, Trainer

WINDOW, HOP, BINS, BANDS = 240, 80, 128, 40
FLOOR = 1e-3
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class SpokenDigits(Network):
    """x: int16 [batch, time, 160], 20 ms of sound at 8 kHz a step -> y: float32 [batch, time, 10], probabilities of the
    digits from what was heard so far.

    The row: h and c of the LSTM, then the last 160 samples, then the sum and the number of the frames' mean levels:
    a frame is heard against the mean level so far, so that loudness does not matter.
    """

    name = "spoken-digits"
    waves: Tensor
    bands: Tensor

    def __init__(self, hidden_size: int = 128, num_layers: int = 2) -> None:
        super().__init__()
        # a short discrete Fourier transform as products with fixed matrices, which may be cut anywhere
        angle = 2 * np.pi / (2 * BINS) * np.outer(np.arange(WINDOW), np.arange(BINS + 1))
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(WINDOW) + 0.5) / WINDOW)
        waves = np.concatenate([hann[:, None] * np.cos(angle), hann[:, None] * np.sin(angle)], axis=1)
        self.register_buffer("waves", torch.from_numpy(waves.astype(np.float32)))
        self.register_buffer("bands", torch.from_numpy(mel_bands().astype(np.float32)))
        self.lstm = Recurrent("lstm", 2 * BANDS, hidden_size, num_layers, dropout=0.3)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(hidden_size, len(WORDS))
        self.state_size = self.lstm.state_size + FRAME + 2

    def features(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x: int16 [batch, time, 160]; state: the row from the samples on -> [batch, time, 80] log-mel bands of two
        windows of 30 ms against the mean level so far, and the state's next value."""
        sound = x.float() / 32768.0
        before = torch.cat([state[:, None, :FRAME], sound[:, :-1]], dim=1)
        pair = torch.cat([before, sound], dim=2)
        bands = []
        for at in (0, HOP):
            spectrum = pair[:, :, at : at + WINDOW] @ self.waves
            power = spectrum[:, :, : BINS + 1] ** 2 + spectrum[:, :, BINS + 1 :] ** 2
            bands.append(torch.log(power @ self.bands + FLOOR))
        heard = torch.cat(bands, dim=2)
        level = heard.mean(dim=2)
        ones = torch.ones_like(level)
        carried = torch.cat([state[:, FRAME : FRAME + 1] + level[:, :1], level[:, 1:]], dim=1).cumsum(1)
        counted = torch.cat([state[:, FRAME + 1 :] + ones[:, :1], ones[:, 1:]], dim=1).cumsum(1)
        following = torch.cat([sound[:, -1], carried[:, -1:], counted[:, -1:]], dim=1)
        return heard - (carried / counted)[:, :, None], following

    def logits(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        n = self.lstm.state_size
        heard, rest = self.features(x, state[:, n:])
        y, recurrent = self.lstm(heard, state[:, :n])
        return self.head(self.dropout(y)), torch.cat([recurrent, rest], dim=1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.logits(x, state)
        return torch.softmax(y, dim=-1), state

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = self.lstm.state_size
        recurrent, before, total, count = (
            state[:, :n],
            state[:, n : n + FRAME],
            state[:, n + FRAME],
            state[:, n + FRAME + 1],
        )
        waves, bands = self.waves.numpy().astype(np.float64), self.bands.numpy().astype(np.float64)
        heard = []
        for t in range(x.shape[1]):
            sound = x[:, t].astype(np.float64) / 32768.0
            pair = np.concatenate([before, sound], axis=1)
            spectra = [pair[:, at : at + WINDOW] @ waves for at in (0, HOP)]
            powers = [s[:, : BINS + 1] ** 2 + s[:, BINS + 1 :] ** 2 for s in spectra]
            frame = np.concatenate([np.log(power @ bands + FLOOR) for power in powers], axis=1)
            total, count = total + frame.mean(axis=1), count + 1
            heard.append(frame - (total / count)[:, None])
            before = sound
        y, recurrent = oracle.recurrent(self.lstm, np.stack(heard, axis=1), recurrent)
        following = np.concatenate([recurrent, before, total[:, None], count[:, None]], axis=1)
        return oracle.softmax(oracle.linear(self.head, y)), following

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        loudness = 10.0 ** rng.uniform(2, 4, (batch, 1, 1))
        return (rng.normal(size=(batch, time, FRAME)) * loudness).clip(-32768, 32767).astype(np.int16)

    def describe(self, manifest: Manifest, folder: Path) -> None:
        manifest.description = "Which digit is being said? 8 kHz sound in, a running answer every 20 ms."
        manifest.mode = MANY_TO_ONE
        manifest.input.CopyFrom(StepSpec(dtype=INT16, shape=[FRAME]))
        manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[len(WORDS)], names=WORDS))
        manifest.labels.extend(WORDS)
        manifest.position_unit = SAMPLES
        manifest.architecture = (
            f"{BANDS} log-mel bands of 30 ms every 10 ms, two a step; LSTM, {self.lstm.num_layers} layers of "
            f"{self.lstm.hidden_size}"
        )
        manifest.parts.extend(self.lstm.parts("lstm"))
        n = self.lstm.state_size
        manifest.parts.append(StatePart(name="samples", offset=n, shape=[FRAME]))
        manifest.parts.append(StatePart(name="level_sum", offset=n + FRAME, shape=[1]))
        manifest.parts.append(StatePart(name="level_count", offset=n + FRAME + 1, shape=[1]))
        manifest.licence = "CC BY-SA 4.0 (data, and weights made from it)"
        manifest.data = "Free Spoken Digit Dataset, Jackson et al., 3,000 recordings of 6 speakers"


def mel_bands() -> np.ndarray:
    """[129, 40]: triangles, evenly spaced on the mel scale from 60 Hz to 4 kHz (O'Shaughnessy, 1987)."""

    def mel(hertz: float | np.ndarray) -> float | np.ndarray:
        return 2595 * np.log10(1 + np.asarray(hertz) / 700)

    edges = 700 * (10 ** (np.linspace(mel(60.0), mel(SAMPLE_RATE / 2), BANDS + 2) / 2595) - 1)
    bins = np.arange(BINS + 1) * SAMPLE_RATE / (2 * BINS)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def build(data: Path) -> SpokenDigits:
    return SpokenDigits()


def fit(network: SpokenDigits, all_of: Recordings, learn: np.ndarray, trainer: Trainer, num_epochs: int) -> None:
    """Cross entropy of the answers, the later the more they count; every recording is changed anew each time. The
    learning rate falls to nothing by half a cosine (Loshchilov and Hutter, 2017); the last weights are kept."""
    rng = np.random.default_rng(int(torch.randint(1 << 30, (1,))))
    num_epochs = min(num_epochs, trainer.max_epochs or num_epochs)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(trainer.optimizer, num_epochs)

    def epoch() -> float:
        changed = [change(all_of.sounds[i], rng) for i in learn]
        total = 0.0
        for x, digits in batches(changed, all_of.digit[learn], 32):
            logits, _ = network.logits(x, torch.zeros(len(x), network.state_size))
            late = torch.linspace(0, 1, x.shape[1]) ** 2
            loss = cross_entropy(logits.transpose(1, 2), digits[:, None].expand(logits.shape[:2]), reduction="none")
            total += trainer.step((loss * late).sum(1).mean() / late.sum()) * len(x)
        schedule.step()
        return total / len(learn)

    # all takes but the test's are learnt from: there is nothing to validate on
    trainer.cycle(epoch, lambda: math.nan, num_epochs=num_epochs)


def train(network: SpokenDigits, data: Path, trainer: Trainer) -> None:
    """On the takes 5 to 49 of all speakers."""
    recordings = load(data)
    fit(network, recordings, np.flatnonzero(recordings.index >= 5), trainer, 30)


@torch.no_grad()
def accuracy(network: SpokenDigits, recordings: Recordings, chosen: np.ndarray) -> float:
    """Share of recordings whose last answer is right."""
    right = 0
    for x, digits in batches([recordings.sounds[i] for i in chosen], recordings.digit[chosen], 64):
        y, _ = network(x, torch.zeros(len(x), network.state_size))
        right += int((y[:, -1].argmax(-1) == digits).sum())
    return right / len(chosen)


def leave_one_out(data: Path, num_epochs: int, is_quiet: bool = True) -> dict[str, float]:
    """Accuracy on all recordings of each speaker by a network that never heard that speaker."""
    recordings, found = load(data), {}
    for number, name in enumerate(recordings.speakers):
        torch.manual_seed(1)
        network = SpokenDigits()
        trainer = Trainer(network, is_quiet=is_quiet)
        fit(network, recordings, np.flatnonzero(recordings.speaker != number), trainer, num_epochs)
        found[name] = accuracy(network, recordings, np.flatnonzero(recordings.speaker == number))
        print(f"{name}: {found[name]:.4f}", flush=True)
    return found


def evaluate(network: SpokenDigits, data: Path) -> Result:
    """Accuracy on the official test, beside the nearest mean of the log-mel bands over time."""
    from sklearn.linear_model import LogisticRegression

    recordings = load(data)
    learn, test = np.flatnonzero(recordings.index >= 5), np.flatnonzero(recordings.index < 5)

    def summary(i: np.integer[Any]) -> np.ndarray:
        """Mean bands of the three thirds of a recording, [240]."""
        sound = recordings.sounds[i][: len(recordings.sounds[i]) // FRAME * FRAME].reshape(1, -1, FRAME)
        with torch.no_grad():
            rest = torch.zeros(1, FRAME + 2)
            heard = network.features(torch.from_numpy(sound), rest)[0][0].numpy()
        return np.concatenate([part.mean(0) for part in np.array_split(heard, 3)])

    linear = LogisticRegression(max_iter=500, C=0.1)
    linear.fit(np.stack([summary(i) for i in learn]), recordings.digit[learn])
    baseline = float(linear.score(np.stack([summary(i) for i in test]), recordings.digit[test]))
    found = accuracy(network, recordings, test)
    by_speaker = {
        f"of {name}": accuracy(network, recordings, test[recordings.speaker[test] == number])
        for number, name in enumerate(recordings.speakers)
    }
    return Result(
        metrics={"test accuracy": found},
        more=by_speaker,
        baselines={"logistic regression on the mean bands of three thirds": baseline},
        unit="share of 300 recordings",
        is_better=found > baseline,
        notes=f"""Official test: takes 0 to 4 of all six speakers, who are heard in training too (takes 5 to 49).
Set out to reach more than 0.974: {"reached" if found > 0.974 else "NOT reached"}. Published on another split (a random
10 %): 0.9733 by a bi-LSTM on 39 MFCC (README of github.com/aniruddhapal211316/spoken_digit_recognition).
{LEFT_OUT}""",
    )


# Found by `leave_one_out`; not by `evaluate`, for it trains six networks.
LEFT_OUT = """Leave one speaker out (15 epochs on the other five, seed 1; all 500 recordings of the one): george
0.540, jackson 0.830, lucas 0.846, nicolas 0.696, theo 0.802, yweweler 0.846; mean 0.760. Five voices are few: who is
not among the six will be understood less well than the test says."""


def write_samples(folder: Path, data: Path) -> None:
    """Ten digits of test as one WAV file each, the speakers in turn."""
    import wave

    recordings = load(data)
    for digit in range(10):
        of = (recordings.digit == digit) & (recordings.speaker == digit % 6) & (recordings.index == 0)
        with wave.open(str(folder / f"{digit}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(recordings.sounds[int(np.flatnonzero(of)[0])].astype("<i2").tobytes())
