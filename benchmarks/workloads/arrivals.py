"""Whole sequences that arrive at random, whatever was answered: latency, the most that hold, overload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from benchmarks import schedules
from benchmarks.generator import Window
from benchmarks.ratios import ratio_of
from benchmarks.report import Line
from benchmarks.stand import Arm, Stand
from benchmarks.workloads.messages import latency, median, refusals
from benchmarks.workloads.sequences import BUCKETS, ONE, PADDED, PLAIN, capacity, open_arms, servers

HOLD_MS = 50.0
DRAIN_S = 2.0
HOLD_AIMS = {ONE: 1.6, BUCKETS: 1.1}


def _arriving(
    stand: Stand, load: float, seconds: float, num_rounds: int, names: Sequence[str]
) -> dict[str, list[Window]]:
    """Windows of arrivals at `load` times the capacity of the batch of one; each round its own arrivals."""
    rate = load * capacity(stand)
    arms = {name: arm for name, arm in open_arms(stand, limit=1_000_000).items() if name in names}
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
    """Loads of 0.5, 0.8, 1.2 and 1.5 times what the batch of one carries (the last from an empty queue), or some."""
    scale = stand.scale
    yield Line("capacity of the batch of one", ONE, f"{capacity(stand):,.0f} sequences/s")
    everyone = list(servers(stand))
    # padded batches carry less than the batch of one: beyond its capacity they would only say so again
    others = [*stand.ours, ONE, BUCKETS]
    for load, seconds, num_rounds, names in (
        (0.5, scale.span_s, 2, everyone),
        (0.8, scale.span_s, scale.num_pairs, others),
        (1.2, scale.span_s * 2, 1, others),
        (1.5, scale.overload_s, 1, others),
    ):
        if load not in scale.loads:
            continue
        measured = _arriving(stand, load, seconds, num_rounds, names)
        title = f"arrivals at {load:g} of that, {num_rounds} window(s) of {seconds:g} s"
        p99s = {name: [window.latency.p99 for window in windows] for name, windows in measured.items()}
        beside = f"p99 of the batch of one {np.median(p99s[ONE]):.1f} ms"
        aim = 1.0 if load == 0.8 else None
        for name, windows in measured.items():
            said = _arrival_figure(windows)
            if name in stand.ours and min(p99s[ONE]) > 0:
                yield Line(title, name, said, beside, ratio_of(p99s[name], p99s[ONE]), at_most=aim)
            else:
                yield Line(title, name, said)


def _p99(arm: Arm, rate: float, seconds: float, seed: int) -> float:
    """p99 in ms of arrivals at a rate; infinite where one was refused or not answered."""
    arrivals = schedules.poisson(rate, seconds, schedules.mixed_lengths(seed), seed)
    window = arm.window(seconds, arrivals, drain_s=DRAIN_S)
    is_whole = window.messages == window.sent and not window.errors
    return window.latency.p99 if is_whole else float("inf")


def _search(stand: Stand, arm: Arm, most: float, seed: int) -> tuple[float, dict[float, list[float]]]:
    """By halving between 0.3 and 1.1 of what an arm carries: the highest rate that holds, and p99 of the tries in ms.

    A rate holds where most of three tries do, each with arrivals of its own: one stall of the machine decides nothing.
    """
    seconds = stand.scale.hold_s
    tried: dict[float, list[float]] = {}

    def holds(rate: float) -> bool:
        tries = tried.setdefault(rate, [])
        return schedules.most_hold(lambda at: _p99(arm, rate, seconds, seed + 1000 * at), HOLD_MS, tries)

    return schedules.highest(holds, 0.3 * most, 1.1 * most, stand.scale.halvings), tried


def holding(stand: Stand) -> Iterator[Line]:
    """Searches of all arms in turn, each with arrivals of its own: at one rate every arm sees the same."""
    arms = open_arms(stand, limit=1_000_000)
    chosen = {name: arm for name, arm in arms.items() if name in stand.ours or name in HOLD_AIMS}
    most = {name: capacity(stand, name) for name in chosen}
    seeds = dict.fromkeys(chosen, 6)

    def search(name: str) -> tuple[float, dict[float, list[float]]]:
        seeds[name] += 1
        return _search(stand, chosen[name], most[name], seeds[name])

    searches = {name: (lambda name=name: search(name)) for name in chosen}
    measured = stand.rounds("hold", searches, stand.scale.num_searches, is_warm=True)
    found = {name: [rate for rate, _ in each] for name, each in measured.items()}
    title = f"most arrivals with p99 < {HOLD_MS:g} ms for {stand.scale.hold_s:g} s, {stand.scale.num_searches} searches"
    for name, rates in found.items():
        said = f"{', '.join(f'{rate:,.0f}' for rate in rates)} sequences/s"
        yield Line(title, name, said, f"saturated {most[name]:,.0f} sequences/s")
    for name in stand.ours:
        for other, aim in HOLD_AIMS.items():
            if min(found[other]) > 0:
                yield Line(title, name, "", other, ratio_of(found[name], found[other]), aim)
    yield from _held(stand, {name: (arm, float(np.median(found[name]))) for name, arm in chosen.items()})
    for arm in arms.values():
        arm.load.close()


def _held(stand: Stand, found: Mapping[str, tuple[Arm, float]]) -> Iterator[Line]:
    """What was found in short tries, held for long: more in steps of 4 % while it is, else less."""
    seconds = stand.scale.held_s
    title = f"the same for {seconds:g} s: from what was found in steps of 4 %"
    held: dict[str, float] = {}
    for name, (arm, rate) in found.items():
        p99s: list[float] = []

        def holds(rate: float, arm: Arm = arm, p99s: list[float] = p99s) -> bool:
            p99s.append(_p99(arm, rate, seconds, 77 + len(p99s)))
            return p99s[-1] < HOLD_MS

        held[name] = schedules.settled(holds, rate)
        said = ", ".join(f"{p99:.1f}" for p99 in p99s)
        yield Line(title, name, f"{held[name]:,.0f} sequences/s; p99 of the tries {said} ms")
    stand.records["held"] = held
    for name in stand.ours:
        for other, aim in HOLD_AIMS.items():
            if held[other] > 0:
                yield Line(title, name, "", other, held[name] / held[other], aim)


def beside(stand: Stand) -> Iterator[Line]:
    """p99 of the short sequences, at loads that make batches; padded ones carry the higher load no longer."""
    seconds = 0.75 * stand.scale.span_s
    arms = open_arms(stand, limit=1_000_000)
    lengths = schedules.short_beside_long(1)
    # a short mix costs the batch of one as many steps a second as the long one
    base = capacity(stand) * float(schedules.mixed_lengths(0).mean()) / float(lengths.mean())
    for load in (0.5, 0.7):
        rate = load * base
        short: dict[str, list[float]] = {name: [] for name in arms}
        for at in range(min(stand.scale.few_pairs, 4)):
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
