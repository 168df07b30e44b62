"""Recordings of spoken digits: read, changed for training, and in batches of equal length."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cellar_models.data import read_bytes
from cellar_models.training import equal_lengths

SHA256 = "59b74b03475322de8c04b7bb985d21d7bce452eded612b68094beb43e31373eb"
SAMPLE_RATE = 8000
# Samples of a step.
FRAME = 160


@dataclass(frozen=True)
class Recordings:
    """sounds: int16, one array each; digit, speaker, index (take): int [3000]; speakers: their names."""

    sounds: list[np.ndarray]
    digit: np.ndarray
    speaker: np.ndarray
    index: np.ndarray
    speakers: list[str]


def load(data: Path) -> Recordings:
    """All 3,000 recordings; the official test holds takes 0 to 4, 300 of them."""
    held = np.load(io.BytesIO(read_bytes(data, "speech_fsdd", "fsdd.npz", SHA256)))
    audio, offsets = held["audio"], held["offsets"]
    sounds = [audio[a:b] for a, b in pairwise(offsets)]
    return Recordings(
        sounds,
        held["label"].astype(int),
        held["speaker"].astype(int),
        held["index"].astype(int),
        list(held["speakers"]),
    )


def change(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The recording said faster or slower and higher or lower by up to 15 %, louder or softer, begun a little earlier
    or later, with noise: int16, of a multiple of 8 frames."""
    speed = rng.uniform(0.85, 1.15)
    at = np.arange(0, len(sound) - 1, speed)
    values = np.interp(at, np.arange(len(sound)), sound.astype(np.float32))
    before = int(rng.integers(0, 5 * FRAME))
    frames = -(-(before + len(values)) // FRAME)
    frames += -frames % 8
    changed = np.zeros(frames * FRAME, np.float32)
    changed[before : before + len(values)] = values
    loudest = max(1.0, float(np.abs(values).max()))
    changed *= 10 ** rng.uniform(2.8, 4.5) / loudest
    changed += rng.normal(size=len(changed)) * np.abs(changed).max() * 10 ** rng.uniform(-4.0, -1.5)
    return changed.clip(-32768, 32767).astype(np.int16)


def batches(sounds: list[np.ndarray], digits: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of equal length: no recurrent step is padded. A last frame that is not full is no step."""
    for picked in equal_lengths((len(sound) // FRAME for sound in sounds), size):
        frames = len(sounds[picked[0]]) // FRAME
        x = np.stack([sounds[i][: frames * FRAME].reshape(frames, FRAME) for i in picked])
        yield torch.from_numpy(x), torch.from_numpy(digits[picked])
