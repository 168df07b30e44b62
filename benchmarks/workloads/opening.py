"""Sessions that are opened and closed again, over and over."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.report import Line
from benchmarks.stand import Stand
from benchmarks.workloads.messages import median


def opening(stand: Stand) -> Iterator[Line]:
    """Sessions a second, by how many a message names; an open and a close each."""
    for streams, sessions in ((64, 1), (4, 256)):
        title = f"{streams} streams that open and close {sessions} session(s) at a time"
        arms = {n: stand.arm(s, "churn", streams=streams, sessions=sessions) for n, s in stand.ours.items()}
        windows = {name: (lambda arm=arm: arm.window(stand.scale.window_s)) for name, arm in arms.items()}
        measured = stand.rounds(title, windows, stand.scale.few_pairs)
        for name, arm in arms.items():
            arm.load.close()
            rate = np.median([window.steps_per_s for window in measured[name]])
            p99 = median(measured[name], lambda window: window.latency.p99)
            yield Line(title, name, f"{rate:,.0f} sessions/s; open and close p99 {p99:.2f} ms")
