"""next-frame, many-to-many aligned: frames of two moving handwritten digits in, after each one the frame that follows.

An LSTM watches and gives, for each step, a few motions and where on the picture each of them holds; the next frame is
the last one moved so (dynamic filters: De Brabandere et al., NIPS 2016; masks: Finn et al., NIPS 2016).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from cellar_proto.v1.manifest_pb2 import MANY_TO_MANY_ALIGNED, ROWS, Manifest, StepSpec
from cellar_proto.v1.tensor_pb2 import FLOAT32
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, pad

from cellar_models import digits, oracle
from cellar_models.network import Network
from cellar_models.recurrent import Recurrent
from cellar_models.training import Result, Trainer

SIZE, DIGIT = 20, 8
# Motions that are mixed, and how far one step moves at most (pixels along each axis).
NUM_MOTIONS, REACH = 3, 2
NUM_SHIFTS = (2 * REACH + 1) ** 2
# Frames that an evaluation's clip has; those of its beginning that are watched before a free run.
CLIP, WATCHED = 30, 20


class NextFrame(Network):
    """x: float32 [batch, time, 20, 20] grey values 0..1 -> y: float32 [batch, time, 20, 20], the next frame, 0..1."""

    name = "next-frame"

    def __init__(self, hidden_size: int = 192, code_size: int = 128) -> None:
        super().__init__()
        self.encoder = nn.Linear(SIZE * SIZE, code_size)
        self.lstm = Recurrent("lstm", code_size, hidden_size)
        self.motions = nn.Linear(hidden_size, NUM_MOTIONS * NUM_SHIFTS)
        self.places = nn.Linear(hidden_size, NUM_MOTIONS * SIZE * SIZE)
        self.state_size = self.lstm.state_size

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clamp(0.0, 1.0)
        y, state = self.lstm(torch.relu(self.encoder(x.flatten(2))), state)
        motions = torch.softmax(self.motions(y).unflatten(2, (NUM_MOTIONS, NUM_SHIFTS)), dim=-1)
        places = torch.softmax(self.places(y).unflatten(2, (NUM_MOTIONS, SIZE, SIZE)), dim=2)
        wide = pad(x, (REACH, REACH, REACH, REACH))
        shifted = torch.stack(
            [
                wide[:, :, i : i + SIZE, j : j + SIZE].flatten(2)
                for i in range(2 * REACH + 1)
                for j in range(2 * REACH + 1)
            ],
            dim=2,
        )  # [batch, time, shifts, 400]
        moved = torch.matmul(motions, shifted).unflatten(3, (SIZE, SIZE))  # [batch, time, motions, 20, 20]
        return (places * moved).sum(dim=2), state

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch, time = x.shape[:2]
        x = np.clip(x.astype(np.float64), 0, 1)
        y, state = oracle.recurrent(
            self.lstm, np.maximum(oracle.linear(self.encoder, x.reshape(batch, time, -1)), 0), state
        )
        motions = oracle.softmax(oracle.linear(self.motions, y).reshape(batch, time, NUM_MOTIONS, NUM_SHIFTS))
        places = oracle.linear(self.places, y).reshape(batch, time, NUM_MOTIONS, SIZE, SIZE)
        places = np.moveaxis(oracle.softmax(np.moveaxis(places, 2, -1)), -1, 2)
        wide = np.pad(x, ((0, 0), (0, 0), (REACH, REACH), (REACH, REACH)))
        made = np.zeros_like(x)
        for motion in range(NUM_MOTIONS):
            moved = np.zeros_like(x)
            for shift in range(NUM_SHIFTS):
                i, j = divmod(shift, 2 * REACH + 1)
                moved += motions[:, :, motion, shift, None, None] * wide[:, :, i : i + SIZE, j : j + SIZE]
            made += places[:, :, motion] * moved
        return made, state

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        return clips(batch, time, rng, digits.load()[0][:100])

    def describe(self, manifest: Manifest, folder: Path) -> None:
        manifest.description = "The next frame of two moving handwritten digits, from the frames so far."
        manifest.mode = MANY_TO_MANY_ALIGNED
        manifest.input.CopyFrom(StepSpec(dtype=FLOAT32, shape=[SIZE, SIZE]))
        manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[SIZE, SIZE]))
        manifest.position_unit = ROWS
        manifest.architecture = f"LSTM, 1 layer of {self.lstm.hidden_size}, {NUM_MOTIONS} motions"
        manifest.parts.extend(self.lstm.parts("lstm"))
        manifest.licence = "CC BY 4.0 (data); Apache-2.0 (weights)"
        manifest.data = "Made from UCI handwritten digits, as in scikit-learn's load_digits"


def clips(num: int, time: int, rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """float32 [num, time, 20, 20] in 0..1: two of `images` [n, 64] (0..16) in each, which start anywhere, move by a
    whole number of pixels from -2 to 2 along each axis (never standing still) and bounce off the walls; where they
    meet the brighter one shows."""
    made = np.zeros((num, time, SIZE, SIZE), np.float32)
    room = SIZE - DIGIT
    ways = np.array([(i, j) for i in range(-REACH, REACH + 1) for j in range(-REACH, REACH + 1) if i or j])
    rows, inside = np.arange(num)[:, None, None], np.arange(DIGIT)
    for _ in range(2):
        digit = images[rng.integers(0, len(images), num)].reshape(num, DIGIT, DIGIT) / 16
        at, way = rng.integers(0, room + 1, (num, 2)), ways[rng.integers(0, len(ways), num)].copy()
        for t in range(time):
            y, x = at[:, 0, None, None] + inside[:, None], at[:, 1, None, None] + inside
            made[rows, t, y, x] = np.maximum(made[rows, t, y, x], digit)
            following = at + way
            is_out = (following < 0) | (following > room)
            way[is_out] *= -1
            at += way
    return made


def build(data: Path) -> NextFrame:
    return NextFrame()


def train(network: NextFrame, data: Path, trainer: Trainer) -> None:
    """Cross entropy of each pixel of the next frame, on new clips of the training digits in every batch; the learning
    rate falls as a cosine over 20 epochs of 50 batches of 32 clips."""
    images, _, part = digits.load()
    num_epochs, num_batches = trainer.max_epochs or 20, 50
    rng = np.random.default_rng(torch.initial_seed())
    valid = torch.from_numpy(clips(64, CLIP, np.random.default_rng(1), images[part == 1]))
    done = 0

    def loss_of(x: Tensor) -> Tensor:
        y, _ = network(x[:, :-1], torch.zeros(len(x), network.state_size))
        # nothing can be known of motion in the first frame
        return binary_cross_entropy(y[:, 1:].clamp(1e-4, 1 - 1e-4), x[:, 2:])

    def epoch() -> float:
        nonlocal done
        total = 0.0
        for _ in range(num_batches):
            share = done / (num_epochs * num_batches)
            for group in trainer.optimizer.param_groups:
                group["lr"] = 4e-3 * min(1.0, 20 * share + 0.05) * max(0.5 * (1 + math.cos(math.pi * share)), 0.01)
            total += trainer.step(loss_of(torch.from_numpy(clips(32, 20, rng, images[part == 0]))))
            done += 1
        return total / num_batches

    trainer.fit(epoch, lambda: float(loss_of(valid)), num_epochs=num_epochs, patience=num_epochs)


@torch.no_grad()
def free_run(network: NextFrame, watched: np.ndarray, steps: int) -> np.ndarray:
    """float32 [n, steps, 20, 20]: what comes after `watched` [n, time, 20, 20], each frame that
    the network gives being its next input."""
    x, made = torch.from_numpy(watched), []
    state = torch.zeros(len(watched), network.state_size)
    for _ in range(steps):
        y, state = network(x, state)
        x = y[:, -1:]
        made.append(x)
    return torch.cat(made, dim=1).numpy()


def _cross_entropy(guess: np.ndarray, truth: np.ndarray) -> float:
    guess = np.clip(guess.astype(np.float64), 1e-4, 1 - 1e-4)
    return float(-np.mean(truth * np.log(guess) + (1 - truth) * np.log(1 - guess)))


def evaluate(network: NextFrame, data: Path, num_clips: int = 200) -> Result:
    """Cross entropy and squared error of a pixel of the next frame, from the second frame on, over 200 clips of 30
    frames made from the test digits; and of frames that follow twenty watched ones when nothing more is shown."""
    images, _, part = digits.load()
    x = clips(num_clips, CLIP, np.random.default_rng(2), images[part == 2])
    with torch.no_grad():
        y = network(torch.from_numpy(x[:, :-1]), torch.zeros(num_clips, network.state_size))[0].numpy()
    guess, last, truth = y[:, 1:], x[:, 1:-1], x[:, 2:]
    straight = np.clip(_straight_on(x[:, :-2], x[:, 1:-1]), 0, 1)
    mean = np.broadcast_to(clips(500, 20, np.random.default_rng(3), images[part == 0]).mean((0, 1)), truth.shape)
    alone, after = free_run(network, x[:, :WATCHED], CLIP - WATCHED), x[:, WATCHED:]
    frozen = np.broadcast_to(x[:, WATCHED - 1 : WATCHED], after.shape)

    def error(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.mean((one.astype(np.float64) - other) ** 2))

    ours, copied = _cross_entropy(guess, truth), _cross_entropy(last, truth)
    return Result(
        metrics={"cross entropy of a pixel": ours, "squared error of a pixel": error(guess, truth)},
        baselines={
            "copy the last frame, cross entropy": copied,
            "copy the last frame, squared error": error(last, truth),
            "move all by the best common shift, squared error": error(straight, truth),
            "mean frame, cross entropy": _cross_entropy(mean, truth),
            "mean frame, squared error": error(mean, truth),
        },
        unit="nats, and grey values 0..1 squared; lower is better",
        is_better=ours < copied and error(guess, truth) < error(last, truth),
        notes=(
            "Clips are made from load_digits by a seeded function; the test digits are in no training clip (index "
            "mod 5, as in `digits`). Cross entropy is against grey values, so that the true frame itself has "
            f"{_cross_entropy(truth, truth):.4f}. In a free run the network is fed what it gave; "
            "the last frame is the last that was watched."
        ),
        more={
            **{
                f"free run, {k} ahead: squared error": error(alone[:, k - 1], after[:, k - 1])
                for k in (1, 2, 5, CLIP - WATCHED)
            },
            **{
                f"last frame, {k} ahead: squared error": error(frozen[:, k - 1], after[:, k - 1])
                for k in (1, 2, 5, CLIP - WATCHED)
            },
            "clips": float(num_clips),
        },
    )


def _straight_on(before: np.ndarray, last: np.ndarray) -> np.ndarray:
    """[n, time, 20, 20]: the last frame moved once more by the one shift that best leads to it from the one before."""
    best, made = np.full(last.shape[:2], np.inf), np.zeros_like(last)
    for i in range(-REACH, REACH + 1):
        for j in range(-REACH, REACH + 1):
            moved, further = _shifted(before, i, j), _shifted(last, i, j)
            error = ((moved - last) ** 2).mean((2, 3))
            is_better = error < best
            best[is_better], made[is_better] = error[is_better], further[is_better]
    return made


def _shifted(x: np.ndarray, i: int, j: int) -> np.ndarray:
    wide = np.pad(x, ((0, 0), (0, 0), (REACH, REACH), (REACH, REACH)))
    return wide[:, :, REACH - i : REACH - i + SIZE, REACH - j : REACH - j + SIZE]


def write_samples(folder: Path, data: Path) -> None:
    """Eight test clips of 30 frames, grey values 0..16 as uint8."""
    images, _, part = digits.load()
    x = clips(8, CLIP, np.random.default_rng(4), images[part == 2])
    np.savez_compressed(folder / "clips.npz", clips=np.rint(x * 16).astype(np.uint8))
