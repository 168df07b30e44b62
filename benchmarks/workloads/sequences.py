"""Whole sequences through Predict: Cellar beside a batch of one, padded batching, and padded batching by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks import schedules
from benchmarks.generator import Window
from benchmarks.ratios import ratio_of
from benchmarks.report import Line
from benchmarks.serving import Served
from benchmarks.stand import Arm, Stand
from benchmarks.workloads.messages import median, refusals

IN_FLIGHT = 256
ONE, PADDED, PLAIN, BUCKETS = "batch of one", "padded", "padded, up to 64 rows", "buckets"
AIMS = {ONE: 1.8, PADDED: 4.0, PLAIN: 4.0, BUCKETS: 1.1}


def servers(stand: Stand) -> dict[str, Served]:
    """Every Cellar server, then the three others: the batching ones with the rows a run that serve them best, and
    padded batches of up to 64, as one would set it without measuring."""
    rows = _best_rows(stand)
    return {
        **stand.ours,
        ONE: stand.comparison("one"),
        PADDED: stand.comparison("padded", rows[PADDED]),
        PLAIN: stand.comparison("padded", 64),
        BUCKETS: stand.comparison("buckets", rows[BUCKETS]),
    }


def open_arms(stand: Stand, *, limit: int = IN_FLIGHT) -> dict[str, Arm]:
    return {name: stand.arm(server, "predict", limit=limit) for name, server in servers(stand).items()}


def _best_rows(stand: Stand) -> dict[str, int]:
    """Rows a run at which each batching scheduler carries most sequences of mixed length, by a few windows."""
    known: dict[str, int] | None = stand.records.get("best rows")
    if known:
        return known
    best = {}
    burst = schedules.burst(schedules.mixed_lengths(9))
    for scheduler in (PADDED, BUCKETS):
        arms = {n: stand.arm(stand.comparison(scheduler, n), "predict", limit=IN_FLIGHT) for n in (8, 16, 64, 256)}
        windows = {
            str(n): (lambda arm=arm: arm.window(stand.scale.window_s, burst).messages_per_s) for n, arm in arms.items()
        }
        rates = stand.rounds(f"rows: {scheduler}", windows, 3)
        for arm in arms.values():
            arm.load.close()
        best[scheduler] = int(max(rates, key=lambda n: float(np.median(rates[n]))))
    stand.records["best rows"] = best
    return best


def _saturated(
    stand: Stand, title: str, lengths_of: Callable[[int], np.ndarray], num_pairs: int
) -> tuple[dict[str, Arm], dict[str, list[Window]]]:
    """All arms with 256 calls in flight; each round has its own sequences, the same for every arm."""
    arms = open_arms(stand)
    counts = dict.fromkeys(arms, 0)

    def window(name: str) -> Window:
        counts[name] += 1
        return arms[name].window(stand.scale.window_s, schedules.burst(lengths_of(counts[name])))

    measured = stand.rounds(title, {name: (lambda name=name: window(name)) for name in arms}, num_pairs)
    for arm in arms.values():
        arm.load.close()
    return arms, measured


def _saturated_lines(
    stand: Stand, title: str, lengths_of: Callable[[int], np.ndarray], num_pairs: int, aims: dict[str, float]
) -> Iterator[Line]:
    arms, measured = _saturated(stand, title, lengths_of, num_pairs)
    rates = {name: [window.messages_per_s for window in windows] for name, windows in measured.items()}
    rows = _best_rows(stand)
    for name in arms:
        steps = median(measured[name], lambda window: window.steps_per_s)
        said = f"{np.median(rates[name]):,.0f} sequences/s, {steps:,.0f} steps/s{refusals(measured[name])}"
        yield Line(title, f"{name}, up to {rows[name]} rows" if name in rows else name, said)
    for name in stand.ours:
        for other in (ONE, PADDED, PLAIN, BUCKETS):
            yield Line(title, name, "", other, ratio_of(rates[name], rates[other]), aims.get(other))


def mixed(stand: Stand) -> Iterator[Line]:
    title = f"lengths lognormal(2.897, 0.75) from 1 to 330, {IN_FLIGHT} in flight"
    yield from _saturated_lines(stand, title, schedules.mixed_lengths, stand.scale.num_pairs, AIMS)


def equal(stand: Stand) -> Iterator[Line]:
    def lengths(seed: int) -> np.ndarray:
        return np.full(40_000, 24)

    yield from _saturated_lines(stand, f"24 steps each, {IN_FLIGHT} in flight", lengths, stand.scale.few_pairs, {})


def capacity(stand: Stand, name: str = ONE) -> float:
    """Sequences of mixed length a second that a server carries, by a few saturated windows."""
    key = f"capacity: {name}"
    if key not in stand.records:
        arm = stand.arm(servers(stand)[name], "predict", limit=IN_FLIGHT)
        rates = [
            arm.window(stand.scale.span_s / 2, schedules.burst(schedules.mixed_lengths(seed))).messages_per_s
            for seed in range(3)
        ]
        arm.load.close()
        stand.records[key] = float(np.median(rates[1:]))
    return stand.records[key]  # type: ignore[no-any-return]
