"""Two arms measured in turn, and what their ratio was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Ratio:
    """Rates of two arms (median of the windows) and the ratio of each pair of neighbouring windows."""

    ours: float
    ceiling: float
    median: float
    low: float
    high: float
    num_pairs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f}, {self.num_pairs} pairs)"


def abba(num_pairs: int) -> list[str]:
    """The order of the windows: AB, BA, AB, ...: a slow drift of the machine hits both arms alike."""
    return [arm for pair in range(num_pairs) for arm in ("AB" if pair % 2 == 0 else "BA")]


def ratio(order: Sequence[str], rates: Sequence[float]) -> Ratio:
    """Median and quartiles of A / B over neighbouring windows. ValueError where the windows are no pairs."""
    if len(order) != len(rates) or len(order) % 2 or not order:
        raise ValueError("windows come in pairs")
    ours, ceiling = [], []
    for at in range(0, len(order), 2):
        pair = dict(zip(order[at : at + 2], rates[at : at + 2], strict=True))
        if set(pair) != {"A", "B"}:
            raise ValueError("each pair holds one window of either arm")
        ours.append(pair["A"])
        ceiling.append(pair["B"])
    values = np.array(ours) / np.array(ceiling)
    low, median, high = np.percentile(values, [25, 50, 75])
    return Ratio(float(np.median(ours)), float(np.median(ceiling)), float(median), float(low), float(high), len(values))


def compare(ours: Callable[[], float], ceiling: Callable[[], float], num_pairs: int, *, is_warm: bool = False) -> Ratio:
    """Runs windows of the two arms in ABBA order, one of each before them uncounted unless they are warm already.

    Each call measures one window and gives its rate.
    """
    order = abba(num_pairs)
    if not is_warm:
        ours(), ceiling()
    return ratio(order, [ours() if arm == "A" else ceiling() for arm in order])


def rounds(arms: Mapping[str, Callable[[], T]], num_rounds: int, *, is_warm: bool = False) -> dict[str, list[T]]:
    """A window of each arm a round, in turn forwards and backwards (ABC, CBA, ...); what each arm's windows gave.

    One round before them is not counted, unless the arms are warm already.
    """
    if not is_warm:
        for window in arms.values():
            window()
    measured: dict[str, list[T]] = {name: [] for name in arms}
    for at in range(num_rounds):
        for name in arms if at % 2 == 0 else reversed(arms):
            measured[name].append(arms[name]())
    return measured


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The ratio of two arms of `rounds`, round by round."""
    if len(ours) != len(theirs):
        raise ValueError("windows come in pairs")
    order = ["A", "B"] * len(ours)
    return ratio(order, [value for pair in zip(ours, theirs, strict=True) for value in pair])


def sequence_lengths(count: int, seed: int = 1) -> np.ndarray:
    """Lengths of `count` sequences, int [count]: lognormal(2.897, 0.75), from 1 to 330."""
    drawn = np.random.default_rng(seed).lognormal(2.897, 0.75, count)
    return np.clip(np.rint(drawn), 1, 330).astype(np.int64)
