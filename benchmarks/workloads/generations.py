"""Generations that arrive while others run: the zoo's `describe`, a dialogue act in, words out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks import samples, schedules
from benchmarks.report import Line
from benchmarks.stand import Stand
from benchmarks.workloads.messages import latency, median, refusals

MODEL = "describe"


def generating(stand: Stand) -> Iterator[Line]:
    """As many as a server carries, then arrivals at half and 0.8 of that."""
    scale = stand.scale
    texts = stand.folder / "acts.txt"
    texts.write_text("\n".join(samples.acts()))
    # 0 steps: the manifest's own limit
    unlimited = np.zeros(20_000, np.int64)
    options = {"model": MODEL, "texts": texts}
    for name, server in stand.ours.items():
        arm = stand.arm(server, "generate", limit=64, **options)
        windows = stand.rounds(
            f"generate: {name}",
            {name: lambda arm=arm: arm.window(scale.window_s * 2, schedules.burst(unlimited))},
            scale.few_pairs,
        )[name]
        arm.load.close()
        rate = median(windows, lambda window: window.messages_per_s)
        words = median(windows, lambda window: window.steps_per_s)
        yield Line("64 generations at a time", name, f"{words:,.0f} words/s, {rate:,.0f} generations/s")
        arm = stand.arm(server, "generate", limit=100_000, **options)
        for load in (0.5, 0.8):
            windows = [
                arm.window(scale.span_s, schedules.poisson(load * rate, scale.span_s, unlimited, seed), drain_s=5)
                for seed in range(3)
            ]
            stand.records[f"generate: {name} at {load:g}"] = windows
            said = f"first word {latency(windows)}; between words {latency(windows, gap=True)}"
            yield Line(f"generations arrive at {load:g} of that", name, said + refusals(windows))
        arm.load.close()
