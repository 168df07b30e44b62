"""Sessions that are stepped: on streams of their own, on a shared one, by unary calls; a step or a chunk a message."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.generator import Window
from benchmarks.ratios import ratio_of
from benchmarks.report import Line
from benchmarks.schedules import highest
from benchmarks.stand import Arm, Stand

RAW = "raw"
MISS_MS = 160.0


@dataclass(frozen=True)
class Case:
    """One row of the page: a load, the ceiling c(rows, steps) beside it, and the echoes of the same messages.

    aim: of the ratio to the ceiling; echo_aim: of the ratio to the first echo.
    """

    title: str
    kind: str
    options: Mapping[str, object]
    rows: int
    steps: int = 1
    echoes: Sequence[str] = ()
    aim: float | None = None
    echo_aim: float | None = None
    has_batch_of_one: bool = False


def median(windows: Sequence[Window], figure: Callable[[Window], float]) -> float:
    return float(np.median([figure(window) for window in windows]))


def latency(windows: Sequence[Window], *, gap: bool = False) -> str:
    """Medians of the windows' p50 and p99."""
    quantiles = [window.gap if gap else window.latency for window in windows]
    return f"p50 {np.median([q.p50 for q in quantiles]):.2f}, p99 {np.median([q.p99 for q in quantiles]):.2f} ms"


def refusals(windows: Sequence[Window]) -> str:
    """What was refused in all windows, by reason; empty where nothing was."""
    total = sum((Counter(window.errors) for window in windows), Counter())
    sent = sum(window.sent for window in windows)
    said = ", ".join(f"{count:,} {reason}" for reason, count in sorted(total.items()))
    return f"; of {sent:,} refused: {said}" if total else ""


def figure(arm: Arm, windows: Sequence[Window]) -> str:
    """Rate, latency and cost of an arm."""
    rate = median(windows, lambda window: window.steps_per_s)
    cost = f"server {arm.server_us:.0f} µs a message"
    return f"{rate:,.0f} steps/s; {latency(windows)}; {cost}{refusals(windows)}"


def compare_case(stand: Stand, case: Case, num_pairs: int) -> Iterator[Line]:
    """Every Cellar server, the ceiling, the echoes and the batch of one, in turn."""
    window_s = stand.scale.window_s
    arms = {name: stand.arm(server, case.kind, **case.options) for name, server in stand.ours.items()}
    if case.has_batch_of_one:
        arms["batch of one"] = stand.arm(stand.comparison("one"), case.kind, **case.options)
    for kind in case.echoes:
        arms[f"echo {kind}"] = stand.arm(stand.echo(kind), case.kind, **{**case.options, "opens": 0})
    windows: dict[str, Callable[[], Window | float]] = {
        name: (lambda arm=arm: arm.window(window_s)) for name, arm in arms.items()
    }
    windows[RAW] = lambda: stand.ceiling.steps_per_s(case.rows, window_s, case.steps)
    measured = stand.rounds(case.title, windows, num_pairs)
    for arm in arms.values():
        arm.load.close()
    raw = measured[RAW]
    ceiling = f"c({case.rows}, {case.steps}) {np.median(raw):,.0f} steps/s"
    rates = {name: [window.steps_per_s for window in measured[name]] for name in arms}
    for name, arm in arms.items():
        is_ours = name in stand.ours
        yield Line(
            case.title,
            name,
            figure(arm, measured[name]),
            ceiling,
            ratio_of(rates[name], raw),
            case.aim if is_ours else None,
        )
    for name in stand.ours:
        for at, kind in enumerate(case.echoes):
            theirs = rates[f"echo {kind}"]
            beside = f"echo {kind} {np.median(theirs):,.0f} messages/s"
            yield Line(case.title, name, "", beside, ratio_of(rates[name], theirs), None if at else case.echo_aim)
    first, *others = stand.ours
    for name in others:
        yield Line(case.title, name, "", first, ratio_of(rates[name], rates[first]))


def _streams(count: int, **more: object) -> Case:
    title = f"{count} streams of one session, one step a message"
    return Case(title, "stream", {"streams": count}, count, echoes=("raw",), **more)  # type: ignore[arg-type]


def _shared(count: int, **more: object) -> Case:
    title = f"one stream of {count} sessions, one step each a frame, two frames in flight"
    return Case(title, "stream", {"sessions": count, "depth": 2}, count, **more)  # type: ignore[arg-type]


def _unary(count: int, echoes: Sequence[str], **more: object) -> Case:
    title = f"{count} sessions, a unary call a step"
    return Case(title, "unary", {"sessions": count}, count, echoes=echoes, **more)  # type: ignore[arg-type]


def frames(stand: Stand) -> Iterator[Line]:
    yield from compare_case(stand, _shared(256, aim=0.85), stand.scale.num_pairs)


def streams(stand: Stand) -> Iterator[Line]:
    pairs = stand.scale.num_pairs
    yield from compare_case(stand, _streams(64, aim=0.25, echo_aim=0.75, has_batch_of_one=True), pairs)
    yield from compare_case(stand, _streams(256, aim=0.30, echo_aim=0.75), pairs)
    yield from _alone(stand)


def _alone(stand: Stand) -> Iterator[Line]:
    """One session: its latency beside the echo's, and its rate beside one row in ONNX Runtime."""
    case = dataclasses.replace(
        _streams(1), title="one session on a stream, one step a message", echoes=("raw", "parsed")
    )
    yield from compare_case(stand, case, stand.scale.num_pairs)
    measured = stand.records[case.title]
    p50s = {name: [w.latency.p50 for w in windows] for name, windows in measured.items() if name != RAW}
    for name in stand.ours:
        for kind in case.echoes:
            theirs = p50s[f"echo {kind}"]
            beside = f"echo {kind} {np.median(theirs):.3f} ms"
            ratio = ratio_of(p50s[name], theirs)
            aim = 1.6 if kind == "raw" else None
            yield Line("one session: p50", name, f"{np.median(p50s[name]):.3f} ms", beside, ratio, at_most=aim)


def best_unary_echo(stand: Stand, sessions: int = 64) -> list[str]:
    """The unary echoes, the fastest first, by a few windows each."""
    kinds = ["raw", "parsed", "sync", "sync-raw"]
    arms = {kind: stand.arm(stand.echo(kind), "unary", sessions=sessions, opens=0) for kind in kinds}
    windows = {kind: (lambda arm=arm: arm.window(stand.scale.window_s).messages_per_s) for kind, arm in arms.items()}
    rates = stand.rounds("unary echoes", windows, 3)
    for arm in arms.values():
        arm.load.close()
    return sorted(kinds, key=lambda kind: -float(np.median(rates[kind])))


def unary(stand: Stand) -> Iterator[Line]:
    best = best_unary_echo(stand)[0]
    yield from compare_case(stand, _unary(64, (best,), echo_aim=0.9, has_batch_of_one=True), stand.scale.num_pairs)


def chunks(stand: Stand) -> Iterator[Line]:
    options = {"streams": 64, "steps": 16}
    case = Case("64 streams of one session, chunks of 16", "stream", options, 64, 16, echoes=("raw",), aim=0.90)
    yield from compare_case(stand, case, stand.scale.num_pairs)


def sizes(stand: Stand) -> Iterator[Line]:
    pairs = stand.scale.few_pairs
    best = best_unary_echo(stand)[0]
    for count in (16, 1024):
        yield from compare_case(stand, _streams(count), pairs)
        yield from compare_case(stand, _shared(count), pairs)
        yield from compare_case(stand, _unary(count, (best,)), pairs)


def control(stand: Stand) -> Iterator[Line]:
    """Two loads alike on one server: what the ratios are when nothing differs."""
    name, server = stand.first
    for title, options in (
        ("64 streams of one session", {"streams": 64}),
        ("one stream of 256 sessions", {"sessions": 256, "depth": 2}),
    ):
        arms = {key: stand.arm(server, "stream", **options) for key in ("A", "A again")}
        windows = {key: (lambda arm=arm: arm.window(stand.scale.window_s).steps_per_s) for key, arm in arms.items()}
        rates = stand.rounds(f"control: {title}", windows, stand.scale.num_pairs)
        for arm in arms.values():
            arm.load.close()
        said = [f"{np.median(rates[key]):,.0f} steps/s" for key in arms]
        yield Line(f"A/A: {title}", name, said[0], f"the same again {said[1]}", ratio_of(*rates.values()))


def many(stand: Stand) -> Iterator[Line]:
    """Rates at 4,096 sessions beside those at 64, on the same server."""
    pairs = {
        "shared streams, up to 256 sessions each": ({"sessions": 64, "depth": 2}, {"streams": 16, "sessions": 256}),
        "streams of one session": ({"streams": 64}, {"streams": 4096}),
        "streams of one session, chunks of 16": ({"streams": 64, "steps": 16}, {"streams": 4096, "steps": 16}),
    }
    for name, server in stand.ours.items():
        for title, (few, more) in pairs.items():
            arms = {"64": stand.arm(server, "stream", **few), "4,096": stand.arm(server, "stream", **more)}
            # 4,096 chunks of 16 take more than a second: in a short window nothing but the first and the last ones run
            windows = {key: (lambda arm=arm: arm.window(stand.scale.span_s)) for key, arm in arms.items()}
            measured = stand.rounds(f"many: {title}: {name}", windows, stand.scale.few_pairs)
            for arm in arms.values():
                arm.load.close()
            rates = {key: [window.steps_per_s for window in each] for key, each in measured.items()}
            beside = f"64 sessions: {np.median(rates['64']):,.0f} steps/s"
            said = figure(arms["4,096"], measured["4,096"])
            yield Line(f"4,096 sessions, {title}", name, said, beside, ratio_of(rates["4,096"], rates["64"]), 0.9)


def deadlines(stand: Stand) -> Iterator[Line]:
    """The most streams whose every chunk is answered before the next one is due."""
    seconds = stand.scale.span_s
    raw = float(np.median([stand.ceiling.steps_per_s(64, 0.3, 16) for _ in range(3)]))
    servers = {**stand.ours, "batch of one": stand.comparison("one")}
    for name, server in servers.items():
        tried: dict[int, float] = {}

        def holds(count: float, server=server, tried=tried) -> bool:
            arm = stand.arm(server, "stream", streams=int(count), steps=16, period_s=MISS_MS / 1e3)
            arm.window(0.5)
            tried[int(count)] = arm.window(seconds).latency.max
            arm.load.close()
            return tried[int(count)] < MISS_MS

        most = int(highest(holds, 16, 2048, stand.scale.halvings + 1))
        stand.records[f"deadlines: {name}"] = tried
        worst = f", the latest answer after {tried[most]:.0f} ms" if most else ""
        beside = f"c(64, 16) {raw:,.0f} steps/s, or {raw / 100:,.0f} streams"
        yield Line("chunks of 16 every 160 ms", name, f"{most} streams{worst}", beside, most / (raw / 100))
