"""Triton's server in its own protocol, beside Cellar in its own and in Triton's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.generator import Window
from benchmarks.network import WIDTH
from benchmarks.ratios import ratio_of
from benchmarks.report import Line
from benchmarks.stand import Arm, BitsError, Stand
from benchmarks.triton.arm import RefusedError, TritonArm, answers, triton_arm
from benchmarks.triton.server import Triton, batchings
from benchmarks.workloads.messages import RAW, figure

NOT_GIVEN = "not measured: --triton names no folder in which nvidia-pytriton is installed"
NO_ONNX = "its ONNX Runtime backend is not in the wheel"

EACH, SHARED, UNARY = "a stream each", "one stream", "unary"


@dataclass(frozen=True)
class Case:
    """Sessions that send a message of so many steps each, one after the other."""

    sessions: int
    steps: int = 1

    @property
    def title(self) -> str:
        what = "one session" if self.sessions == 1 else f"{self.sessions} sessions"
        return f"{what}, {'a step' if self.steps == 1 else f'{self.steps} steps'} a message"

    def ways(self, prefix: str = "oip-") -> dict[str, tuple[str, dict[str, int]]]:
        """Kind and options of the load, by how the messages travel."""
        each, steps = self.sessions, {"steps": self.steps}
        ways = {
            EACH: (f"{prefix}stream", {"streams": each, **steps}),
            SHARED: (f"{prefix}stream", {"sessions": each, **steps}),
            UNARY: (f"{prefix}unary", {"sessions": each, **steps}),
        }
        if each == 1:
            del ways[SHARED]
        return ways


CASES = (Case(1), Case(64), Case(256), Case(64, 16))


def _rate(window: Window) -> float:
    return window.steps_per_s


def _best(stand: Stand, server: Triton, case: Case) -> dict[str, str]:
    """The batching that carries most, by two windows each: on streams (one each, or one for all) and by unary calls."""
    best: dict[str, tuple[float, str]] = {}
    for way, (kind, options) in case.ways().items():
        for model in batchings(case.sessions):
            arm = triton_arm(stand.generator, server, kind, model=model, **options)
            arm.window(stand.scale.window_s / 4)
            rate = max(_rate(arm.window(stand.scale.window_s / 2)) for _ in range(2))
            arm.load.close()
            best[way] = max(best.get(way, (0.0, "")), (rate, model))
    stand.records[f"triton: best, {case.title}"] = best
    streams = max((way for way in best if way != UNARY), key=lambda way: best[way])
    return {way: best[way][1] for way in (streams, UNARY)}


def _arms(stand: Stand, server: Triton, case: Case) -> dict[str, Arm]:
    """Cellar's servers by their own streams; the first also by unary calls and by Triton's protocol; Triton's best."""
    first, cellar = stand.first
    native = case.ways("")
    arms: dict[str, Arm] = {}
    for name, each in stand.ours.items():
        kind, options = native[EACH]
        arms[f"{name}, {EACH}"] = stand.arm(each, kind, **options)
    if case == Case(256):
        arms[f"{first}, frames of 256 sessions"] = stand.arm(cellar, "stream", sessions=256, depth=2)
    kind, options = native[UNARY]
    arms[f"{first}, {UNARY}"] = stand.arm(cellar, kind, **options)
    for way, (kind, options) in case.ways().items():
        arms[f"{first}, Open Inference Protocol, {way}"] = stand.arm(cellar, kind, **options)
    for way, model in _best(stand, server, case).items():
        kind, options = case.ways()[way]
        arms[f"Triton, {way}, {model}"] = triton_arm(stand.generator, server, kind, model=model, **options)
    return arms


def _measured(stand: Stand, server: Triton, case: Case) -> Iterator[Line]:
    window_s = stand.scale.window_s
    arms = _arms(stand, server, case)
    windows: dict[str, Callable[[], Window | float]] = {
        name: (lambda arm=arm: arm.window(window_s)) for name, arm in arms.items()
    }
    windows[RAW] = lambda: stand.ceiling.steps_per_s(case.sessions, window_s, case.steps)
    measured = stand.rounds(f"triton: {case.title}", windows, stand.scale.few_pairs)
    for arm in arms.values():
        arm.load.close()
    raw = measured[RAW]
    ceiling = f"c({case.sessions}, {case.steps}) {np.median(raw):,.0f} steps/s"
    rates = {name: [_rate(window) for window in measured[name]] for name in arms}
    for name, arm in arms.items():
        yield Line(case.title, name, figure(arm, measured[name]), ceiling, ratio_of(rates[name], raw))
    theirs = [name for name in arms if isinstance(arms[name], TritonArm)]
    best = max(theirs, key=lambda name: float(np.median(rates[name])))
    for name in arms:
        if name not in theirs:
            beside = f"{best} {np.median(rates[best]):,.0f} steps/s"
            yield Line(case.title, name, "", beside, ratio_of(rates[name], rates[best]), _aim(stand, name, case))


def _aim(stand: Stand, name: str, case: Case) -> float | None:
    if name == f"{stand.first[0]}, {EACH}":
        return 1.0
    return 3.0 if name.endswith("frames of 256 sessions") else None


def _bits(stand: Stand, server: Triton, model: str, sequence_id: int) -> int:
    """Sequences in chunks beside 32 streams under load, each compared to the batch of one; steps that were equal."""
    rng = np.random.default_rng(sequence_id)
    load = stand.generator.open("oip-stream", server.address, model=model, streams=32)
    load.begin(1.0)
    steps = 0
    try:
        for chunk in (1, 3, 16):
            sequence = rng.standard_normal((24, WIDTH), np.float32)
            got = answers(server.address, model, sequence, chunk, sequence_id=sequence_id + chunk)
            if not np.array_equal(got, stand.ceiling.alone(sequence)):
                raise BitsError(f"Triton, {model}: other bits than the batch of one")
            steps += len(sequence)
    finally:
        load.end()
        load.close()
    return steps


def _all_bits(stand: Stand, server: Triton, models: list[str]) -> int:
    """`_bits` of every batching, again where the server died of it."""
    steps = 0
    for at, model in enumerate(models):
        while True:
            try:
                steps += _bits(stand, server, model, 1_000_000 + 100 * at)
                break
            except RefusedError:
                if not server.has_died({"refused": 1}):
                    raise
    return steps


def beside_triton(stand: Stand) -> Iterator[Line]:
    """Bits first, then every case; how often the process died at the end."""
    if stand.triton is None:
        yield Line("Triton", "", NOT_GIVEN)
        return
    with Triton(stand.triton, stand.folder / "triton") as server:
        models = batchings(64)
        said = f"{_all_bits(stand, server, models):,} steps equal"
        yield Line("sequences in chunks beside 32 streams", f"Triton, {len(models)} batchings", said)
        for case in CASES:
            yield from _measured(stand, server, case)
        stand.records["triton: deaths"] = server.deaths
    said = f"{server.num_deaths}; started anew each time, the window measured again; {NO_ONNX}"
    yield Line("deaths of its process", "Triton", said)
