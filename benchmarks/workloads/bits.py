"""That a caller's answers are those of the batch of one, to the bit, while others load the server."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import schedules
from benchmarks.report import Line
from benchmarks.stand import BitsError, Stand, is_quantised


def compare_bits(stand: Stand) -> Iterator[Line]:
    """Beside 64 streams of one-step messages, and beside whole sequences of mixed length. BitsError for float32."""
    loads = {"64 streams": ("stream", {"streams": 64}), "mixed sequences": ("predict", {"limit": 128})}
    burst = schedules.burst(schedules.mixed_lengths(5))
    for name, server in stand.ours.items():
        for beside, (kind, options) in loads.items():
            load = stand.arm(server, kind, **options).load
            arrivals = burst if kind == "predict" else None
            try:
                steps = stand.check_bits(server, lambda load=load, arrivals=arrivals: load.begin(2.0, arrivals))
                said = f"{steps:,} steps equal"
            except BitsError as error:
                if not is_quantised(stand.flags[name]):
                    raise
                said = f"not float32: {error}"
            load.end()
            load.close()
            yield Line(f"sequences and chunks beside {beside}", name, said)
