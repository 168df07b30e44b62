"""When calls arrive and how long they are: float64 [n, 2] of seconds after the window's begin, and steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from benchmarks.ratios import sequence_lengths


def burst(lengths: np.ndarray) -> np.ndarray:
    """All due at once: the generator's own limit says how many are in flight."""
    return np.stack([np.zeros(len(lengths)), lengths.astype(np.float64)], axis=1)


def poisson(rate_per_s: float, seconds: float, lengths: np.ndarray, seed: int) -> np.ndarray:
    """Arrivals at random, `rate_per_s` of them on average, with the lengths in turn."""
    rng = np.random.default_rng(seed)
    count = int(rate_per_s * seconds + 6 * math.sqrt(rate_per_s * seconds) + 10)
    times = np.cumsum(rng.exponential(1 / rate_per_s, count))
    times = times[times < seconds]
    return np.stack([times, np.resize(lengths, len(times)).astype(np.float64)], axis=1)


def mixed_lengths(seed: int, count: int = 40_000) -> np.ndarray:
    """Lengths of workload 1: lognormal(2.897, 0.75), from 1 to 330."""
    return sequence_lengths(count, seed)


def short_beside_long(seed: int, count: int = 40_000, short: int = 4, long: int = 300) -> np.ndarray:
    """Nine short sequences to one long, in a random order within each ten."""
    rng = np.random.default_rng(seed)
    tens = np.tile([long] + [short] * 9, (count // 10, 1))
    return rng.permuted(tens, axis=1).reshape(-1)


def most_hold(measure: Callable[[int], float], below: float, tries: list[float]) -> bool:
    """Whether most of three tries are below a bound; the third is made where the first two differ. tries: filled."""
    for at in range(3):
        tries.append(measure(at))
        good = sum(each < below for each in tries)
        if good == 2 or len(tries) - good == 2:
            break
    return good == 2


def highest(holds: Callable[[float], bool], low: float, high: float, halvings: int) -> float:
    """The highest value at which it still holds, between two bounds, by halving their ratio; 0 where not at `low`."""
    if not holds(low):
        return 0.0
    for _ in range(halvings):
        middle = math.sqrt(low * high)
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def settled(holds: Callable[[float], bool], value: float, step: float = 1.04, tries: int = 6) -> float:
    """The highest that holds in steps of a ratio from `value`: up while it holds, else down; 0 where none does."""
    if not holds(value):
        lower = (value / step**at for at in range(1, tries))
        return next((each for each in lower if holds(each)), 0.0)
    for _ in range(1, tries):
        if not holds(value * step):
            break
        value *= step
    return value
