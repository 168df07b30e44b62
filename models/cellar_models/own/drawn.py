"""Inputs, conditions and start rows for the proof of an entry: as they come where that can be known, else at random."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from cellar_proto.v1.manifest_pb2 import Manifest, StepSpec

from cellar_models.own.proof import DTYPES, STEPS
from cellar_models.verify import ROWS, VerifyError


def inputs(folder: Path, manifest: Manifest, rng: np.random.Generator) -> np.ndarray:
    """[256, 16, ...]: stretches of the rows in a CSV file of `samples/` that has the input's names, else at random."""
    spec = manifest.input
    rows = _sampled(folder, list(spec.names)) if len(spec.shape) == 1 else None
    if rows is None:
        x = _random(spec, (max(ROWS), STEPS), rng)
        if manifest.text.tokenizer_file and len(spec.shape) == 1:  # a word's id, and its bytes
            x[..., 1:] = rng.integers(0, 257, x[..., 1:].shape)
        return x
    first = rng.integers(0, len(rows), (max(ROWS), 1))
    return rows[(first + np.arange(STEPS)) % len(rows)].astype(DTYPES[spec.dtype])


def conditions(manifest: Manifest, rng: np.random.Generator) -> np.ndarray:
    """[256, (16,) ...]: features of a dialogue act are there or not; others at random."""
    lead = (max(ROWS), STEPS) if manifest.prime.is_recurrent else (max(ROWS),)
    spec = manifest.prime.condition
    if manifest.prime.HasField("dialogue_act"):
        return rng.integers(0, 2, (*lead, *spec.shape)).astype(np.float32)
    return _random(spec, lead, rng)


def start_rows(folder: Path, manifest: Manifest) -> np.ndarray:
    """float32 [256, S], from the start file or zero; VerifyError where the file holds another number of them."""
    row = np.zeros(manifest.state_size, np.float32)
    if manifest.start_file:
        row = np.fromfile(folder / manifest.start_file, "<f4")
        if row.shape != (manifest.state_size,):
            raise VerifyError(f"{manifest.start_file} holds {len(row)} numbers; the row has {manifest.state_size}")
    return np.tile(row, (max(ROWS), 1))


def _random(spec: StepSpec, lead: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Normal numbers, ids of the vocabulary, samples, grey values."""
    dtype, shape = DTYPES[spec.dtype], (*lead, *spec.shape)
    if dtype is np.float32:
        return rng.standard_normal(shape).astype(np.float32)
    if dtype is np.int64:
        return rng.integers(0, spec.vocabulary or 2, shape)
    low, high = (0, 256) if dtype is np.uint8 else (-8192, 8192)
    return rng.integers(low, high, shape).astype(dtype)


def _sampled(folder: Path, names: list[str]) -> np.ndarray | None:
    """float64 [rows, names] of the first CSV file that has these columns; None where there is none."""
    for path in sorted((folder / "samples").glob("*.csv")) if names else []:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if rows and set(names) <= set(rows[0]):
            return np.array([[float(row[name]) for name in names] for row in rows])
    return None
