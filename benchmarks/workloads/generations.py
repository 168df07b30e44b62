"""Generations that arrive while others run: the zoo's `describe`, a dialogue act in, words out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks import samples, schedules
from benchmarks.generator import Window
from benchmarks.ratios import ratio_of
from benchmarks.report import Line
from benchmarks.serving import Served
from benchmarks.stand import Arm, Stand
from benchmarks.workloads.messages import latency, median, refusals

MODEL = "describe"
IN_FLIGHT = 256
ONE, STATIC = "batch of one", "static batches"
ROWS = (16, 64, 256)
DRAIN_S = 5.0


def _arm(stand: Stand, server: Served, limit: int) -> Arm:
    texts = stand.folder / "acts.txt"
    if not texts.exists():
        texts.write_text("\n".join(samples.acts()))
    return stand.arm(server, "generate", limit=limit, model=MODEL, texts=texts)


def _unlimited(count: int = 20_000) -> np.ndarray:
    """0 steps: the manifest's own limit."""
    return np.zeros(count, np.int64)


def _servers(stand: Stand) -> dict[str, Served]:
    """Cellar's, the batch of one, and static batches of the rows that carry most words."""
    known: int = stand.records.get("best rows: generations", 0)
    if not known:
        arms = {rows: _arm(stand, stand.generating(rows), IN_FLIGHT) for rows in ROWS}
        burst = schedules.burst(_unlimited())
        windows = {
            str(rows): (lambda arm=arm: arm.window(stand.scale.window_s, burst).steps_per_s)
            for rows, arm in arms.items()
        }
        rates = stand.rounds("rows: generations", windows, 2)
        for arm in arms.values():
            arm.load.close()
        known = int(max(rates, key=lambda rows: float(np.median(rates[rows]))))
        stand.records["best rows: generations"] = known
    return {**stand.ours, STATIC: stand.generating(known), ONE: stand.generating(1)}


def generating(stand: Stand) -> Iterator[Line]:
    """With 256 at a time; then arrivals, the same for all, at half and 0.8 of what static batches carry."""
    servers, scale = _servers(stand), stand.scale
    rows = stand.records["best rows: generations"]
    called = {name: f"{name}, up to {rows} rows" if name == STATIC else name for name in servers}
    arms = {name: _arm(stand, server, IN_FLIGHT) for name, server in servers.items()}
    burst = schedules.burst(_unlimited())
    windows = {name: (lambda arm=arm: arm.window(scale.window_s * 2, burst)) for name, arm in arms.items()}
    measured = stand.rounds("generate", windows, scale.few_pairs)
    for arm in arms.values():
        arm.load.close()
    rates = {name: [window.steps_per_s for window in each] for name, each in measured.items()}
    title = f"{IN_FLIGHT} generations at a time"
    for name, each in measured.items():
        calls = median(each, lambda window: window.messages_per_s)
        said = f"{np.median(rates[name]):,.0f} words/s, {calls:,.0f} generations/s"
        yield Line(title, called[name], f"{said}; first word {latency(each)}{refusals(each)}")
    for name in stand.ours:
        for other in (STATIC, ONE):
            yield Line(title, name, "", called[other], ratio_of(rates[name], rates[other]))
    carried = median(measured[STATIC], lambda window: window.messages_per_s)
    for load in (0.5, 0.8):
        yield from _arriving(
            stand, servers, called, load * carried, f"arrivals at {load:g} of what static batches carry"
        )
    for name in stand.ours:
        own = median(measured[name], lambda window: window.messages_per_s)
        yield from _arriving(stand, {name: servers[name]}, called, 0.8 * own, "arrivals at 0.8 of its own")


def _arriving(
    stand: Stand, servers: dict[str, Served], called: dict[str, str], rate: float, title: str
) -> Iterator[Line]:
    """First word and the gap to the next message, p99 beside Cellar's."""
    seconds = stand.scale.span_s
    arms = {name: _arm(stand, server, 100_000) for name, server in servers.items()}
    counts = dict.fromkeys(arms, 0)

    def window(name: str) -> Window:
        counts[name] += 1
        arrivals = schedules.poisson(rate, seconds, _unlimited(), counts[name])
        return arms[name].window(seconds, arrivals, drain_s=DRAIN_S)

    windows = {name: (lambda name=name: window(name)) for name in arms}
    measured = stand.rounds(f"generate: {title}: {', '.join(arms)}", windows, 3, is_warm=True)
    for arm in arms.values():
        arm.load.close()
    title = f"{title}, {rate:,.0f} a second"
    for name, each in measured.items():
        said = f"first word {latency(each)}; between words {latency(each, gap=True)}{refusals(each)}"
        yield Line(title, called[name], said)
    for name in stand.ours:
        for other in (STATIC, ONE):
            if name in arms and other in arms:
                for what, figure in (("first word", _first), ("between words", _gap)):
                    times = ratio_of([figure(w) for w in measured[other]], [figure(w) for w in measured[name]])
                    yield Line(f"{title}: p99, {what}", name, "", f"{called[other]}: times as long", times)


def _first(window: Window) -> float:
    return window.latency.p99


def _gap(window: Window) -> float:
    return window.gap.p99
