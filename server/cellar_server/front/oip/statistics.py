"""Counts and times in the protocol's form. Requests are those of this service; queue, compute and batches are counted
by the engine and hold all traffic of a model."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from cellar_server.engine import Engine


@dataclass
class Tally:
    """Requests of one model version: how many, how long, how many rows. Any thread counts."""

    success: int = 0
    success_ns: int = 0
    fail: int = 0
    fail_ns: int = 0
    rows: int = 0
    last_ms: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def succeed(self, begun_ns: int, rows: int) -> None:
        with self._lock:
            self.success += 1
            self.success_ns += time.perf_counter_ns() - begun_ns
            self.rows += rows
            self.last_ms = time.time_ns() // 1_000_000

    def fail_one(self, begun_ns: int) -> None:
        with self._lock:
            self.fail += 1
            self.fail_ns += time.perf_counter_ns() - begun_ns


def describe(engine: Engine, tally: Tally, made: Any) -> None:
    """Fills a ModelStatistics."""
    counts = engine.counts()
    made.name, made.version = engine.name, str(engine.version)
    made.last_inference = tally.last_ms
    made.inference_count, made.execution_count = tally.rows, counts.runs
    stats = made.inference_stats
    for target, count, ns in (
        (stats.success, tally.success, tally.success_ns),
        (stats.fail, tally.fail, tally.fail_ns),
        (stats.queue, counts.queue_rows, int(counts.queue_s * 1e9)),
        (stats.compute_infer, counts.rows, int(counts.compute_s * 1e9)),
    ):
        target.count, target.ns = count, ns
    for rows, runs in sorted(counts.runs_by_rows.copy().items()):
        batch = made.batch_stats.add(batch_size=rows)
        batch.compute_infer.count = runs
        batch.compute_infer.ns = int(counts.seconds_by_rows.get(rows, 0.0) * 1e9)
