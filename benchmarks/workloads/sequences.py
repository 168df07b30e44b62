"""Whole sequences through Predict: Cellar beside a batch of one, padded batching, and padded batching by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks import schedules
from benchmarks.generator import Window
from benchmarks.ratios import ratio_of
from benchmarks.report import Line
from benchmarks.serving import Served
from benchmarks.stand import Arm, Stand
from benchmarks.workloads.messages import latency, median, refusals

IN_FLIGHT = 256
HOLD_MS = 50.0
DRAIN_S = 2.0
ONE, PADDED, PLAIN, BUCKETS = "batch of one", "padded", "padded, up to 64 rows", "buckets"
AIMS = {ONE: 1.8, PADDED: 4.0, PLAIN: 4.0, BUCKETS: 1.1}
HOLD_AIMS = {ONE: 1.6, BUCKETS: 1.1}


def _servers(stand: Stand) -> dict[str, Served]:
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


def _arms(stand: Stand, *, limit: int = IN_FLIGHT) -> dict[str, Arm]:
    return {name: stand.arm(server, "predict", limit=limit) for name, server in _servers(stand).items()}


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
    arms = _arms(stand)
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
        arm = stand.arm(_servers(stand)[name], "predict", limit=IN_FLIGHT)
        rates = [
            arm.window(stand.scale.span_s / 2, schedules.burst(schedules.mixed_lengths(seed))).messages_per_s
            for seed in range(3)
        ]
        arm.load.close()
        stand.records[key] = float(np.median(rates[1:]))
    return stand.records[key]  # type: ignore[no-any-return]


def _arriving(
    stand: Stand, load: float, seconds: float, num_rounds: int, names: Sequence[str]
) -> dict[str, list[Window]]:
    """Windows of arrivals at `load` times the capacity of the batch of one; each round its own arrivals."""
    rate = load * capacity(stand)
    arms = {name: arm for name, arm in _arms(stand, limit=1_000_000).items() if name in names}
    counts = dict.fromkeys(arms, 0)

    def window(name: str) -> Window:
        counts[name] += 1
        seed = 100 * counts[name]
        arrivals = schedules.poisson(rate, seconds, schedules.mixed_lengths(seed), seed)
        return arms[name].window(seconds, arrivals, drain_s=DRAIN_S)

    windows = {name: (lambda name=name: window(name)) for name in arms}
    measured = stand.rounds(f"arrivals at {load:g}", windows, num_rounds, is_warm=True)
    for arm in arms.values():
        arm.load.close()
    return measured


def _arrival_figure(windows: Sequence[Window]) -> str:
    answered = median(windows, lambda window: window.in_time_messages / window.asked_s)
    lost = sum(window.sent - window.messages for window in windows)
    late_ms = median(windows, lambda window: window.late.p99)
    said = f"{latency(windows)}; {answered:,.0f} answered/s"
    if lost:
        said += f"; {lost:,} not answered {DRAIN_S:g} s after the last arrival"
    # of the machine or the generator, not of the server: in the latency all the same
    return said + (f"; sent late by p99 {late_ms:.1f} ms" if late_ms >= 1 else "")


def arriving(stand: Stand) -> Iterator[Line]:
    """Loads of 0.5, 0.8, 1.2 and 1.5 times what the batch of one carries; the last from an empty queue."""
    scale = stand.scale
    yield Line("capacity of the batch of one", ONE, f"{capacity(stand):,.0f} sequences/s")
    everyone = list(_servers(stand))
    # padded batches carry less than the batch of one: beyond its capacity they would only say so again
    others = [*stand.ours, ONE, BUCKETS]
    for load, seconds, num_rounds, names in (
        (0.5, scale.span_s, 2, everyone),
        (0.8, scale.span_s, 3, others),
        (1.2, scale.span_s * 2, 1, others),
        (1.5, scale.overload_s, 1, others),
    ):
        measured = _arriving(stand, load, seconds, num_rounds, names)
        title = f"arrivals at {load:g} of that, {num_rounds} window(s) of {seconds:g} s"
        one = median(measured[ONE], lambda window: window.latency.p99)
        for name, windows in measured.items():
            p99 = median(windows, lambda window: window.latency.p99)
            ratio = p99 / one if name in stand.ours and one else None
            beside = f"p99 of the batch of one {one:.1f} ms" if ratio else ""
            aim = 1.0 if load == 0.8 else None
            yield Line(title, name, _arrival_figure(windows), beside, ratio, at_most=aim if ratio else None)


def holding(stand: Stand) -> Iterator[Line]:
    """By halving between 0.3 and 1.1 times what each arm carries; at one rate every arm sees the same arrivals."""
    seconds = stand.scale.hold_s
    found = {}
    for name, arm in _arms(stand, limit=1_000_000).items():
        if name not in stand.ours and name not in HOLD_AIMS:
            arm.load.close()
            continue
        tried: dict[float, float] = {}

        def holds(rate: float, arm: Arm = arm, tried: dict[float, float] = tried) -> bool:
            arrivals = schedules.poisson(rate, seconds, schedules.mixed_lengths(7), 7)
            window = arm.window(seconds, arrivals, drain_s=DRAIN_S)
            is_whole = window.messages == window.sent and not window.errors
            tried[rate] = window.latency.p99 if is_whole else float("inf")
            return tried[rate] < HOLD_MS

        most = capacity(stand, name)
        found[name] = schedules.highest(holds, 0.3 * most, 1.1 * most, stand.scale.halvings)
        stand.records[f"hold: {name}"] = tried
        arm.load.close()
    title = f"most arrivals with p99 < {HOLD_MS:g} ms for {seconds:g} s"
    for name, rate in found.items():
        said = f"{rate:,.0f} sequences/s" if rate else "none that was tried"
        yield Line(title, name, said, f"saturated {capacity(stand, name):,.0f} sequences/s")
    for name in stand.ours:
        for other, aim in HOLD_AIMS.items():
            if found[other]:
                yield Line(title, name, "", other, found[name] / found[other], aim)


def beside(stand: Stand) -> Iterator[Line]:
    """p99 of the short sequences, at loads that make batches; padded ones carry the higher load no longer."""
    seconds = 0.75 * stand.scale.span_s
    arms = _arms(stand, limit=1_000_000)
    lengths = schedules.short_beside_long(1)
    # a short mix costs the batch of one as many steps a second as the long one
    base = capacity(stand) * float(schedules.mixed_lengths(0).mean()) / float(lengths.mean())
    for load in (0.5, 0.7):
        rate = load * base
        short: dict[str, list[float]] = {name: [] for name in arms}
        for at in range(4):
            arrivals = schedules.poisson(rate, seconds, lengths, at)
            for name in arms if at % 2 == 0 else reversed(arms):
                path = stand.folder / "saved"
                arms[name].window(seconds, arrivals, path, drain_s=DRAIN_S)
                saved = np.fromfile(path, np.float32).reshape(-1, 2)
                # what was never answered took longer than all that was
                latencies_ms = np.where(saved[:, 1] < 0, 1e3 * (seconds + DRAIN_S), 1e3 * saved[:, 1])
                short[name].append(float(np.percentile(latencies_ms[saved[:, 0] <= 4], 99)))
        stand.records[f"beside at {load:g}"] = short
        title = f"4 steps beside 300, nine to one, {load:g} of the batch of one: p99 of the short"
        for name in arms:
            yield Line(title, name, f"{np.median(short[name]):.1f} ms")
        for name in stand.ours:
            for other, aim in ((PADDED, 5.0), (PLAIN, 5.0), (ONE, None), (BUCKETS, None)):
                yield Line(title, name, "", f"{other}: times as long", ratio_of(short[other], short[name]), aim)
    for arm in arms.values():
        arm.load.close()


def overload(stand: Stand) -> Iterator[Line]:
    """Twice and 3.5 times its own capacity, each call with a second to live: what is answered, what is refused."""
    seconds = stand.scale.span_s
    for name, server in stand.ours.items():
        rate = capacity(stand, name)
        arm = stand.arm(server, "predict", limit=1_000_000, timeout_ms=1000)
        for load in (1.0, 2.0, 3.5):
            arrivals = schedules.poisson(load * rate, seconds, schedules.mixed_lengths(3), 3)
            window = arm.window(seconds, arrivals, drain_s=DRAIN_S)
            stand.records[f"overload: {name} at {load:g}"] = window
            rate_in_time = window.in_time_messages / seconds
            said = f"{rate_in_time:,.0f} answered/s; {latency([window])}{refusals([window])}"
            beside = f"capacity {rate:,.0f} sequences/s; {window.sent:,} sent"
            title = f"arrivals at {load:g} of its own capacity for {seconds:g} s, 1 s to live"
            yield Line(title, name, said, beside, rate_in_time / rate)
        arm.load.close()
