"""The real inputs that lie beside the zoo's models."""

from __future__ import annotations

import csv
import json
import wave
from pathlib import Path

import numpy as np

from benchmarks.serving import ZOO


def _file(model: str, name: str, zoo: Path) -> Path:
    versions = sorted((p for p in (zoo / model).iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    return versions[-1] / "samples" / name


def digits(zoo: Path = ZOO) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [n, 64] of grey values 0 to 16, and the true digits int [n]."""
    with _file("digits", "digits.csv", zoo).open() as file:
        rows = np.array([[float(v) for v in row] for row in list(csv.reader(file))[1:]], np.float32)
    return rows[:, :64], rows[:, 64].astype(int)


def sentences_file(zoo: Path = ZOO) -> Path:
    return _file("sentiment", "sentiment.jsonl", zoo)


def sentences(zoo: Path = ZOO) -> list[dict[str, str]]:
    """Film review sentences: {"text", "label"}."""
    return [json.loads(line) for line in sentences_file(zoo).read_text().splitlines() if line]


def acts(zoo: Path = ZOO) -> list[str]:
    """Dialogue acts, one a line."""
    return [line for line in _file("describe", "acts.txt", zoo).read_text().splitlines() if line]


def text(model: str, zoo: Path = ZOO) -> str:
    """A piece of text that a model of characters was not trained on."""
    return _file(model, "text.txt", zoo).read_text("utf-8")


def translations(zoo: Path = ZOO) -> list[tuple[str, str]]:
    """English sentences and a French one of each."""
    lines = _file("translate", "sentences.tsv", zoo).read_text().splitlines()
    return [tuple(line.split("\t")) for line in lines if line]  # type: ignore[misc]


def hours(zoo: Path = ZOO) -> np.ndarray:
    """Air and weather of consecutive hours, float32 [n, 14]; column 0 is PM2.5, column 1 says that it was missing."""
    with _file("forecast", "forecast.csv", zoo).open() as file:
        return np.array([[float(v) for v in row] for row in list(csv.reader(file))[1:]], np.float32)


def spoken(digit: int, zoo: Path = ZOO) -> np.ndarray:
    """A recording of a digit: int16 [samples], 8 kHz."""
    with wave.open(str(_file("spoken-digits", f"{digit}.wav", zoo))) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")
