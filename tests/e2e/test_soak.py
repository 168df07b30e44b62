"""The soak: an hour, or CELLAR_SOAK_MINUTES, at CELLAR_SOAK_RATE, in `make test-all`; by default only whether it would
see a leak."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.e2e.soak import Look, Report, run, watched

MINUTES = float(os.environ.get("CELLAR_SOAK_MINUTES", "60"))
RATE = float(os.environ.get("CELLAR_SOAK_RATE", "1"))


@pytest.mark.slow
@pytest.mark.timeout(60 * MINUTES + 300)
def test_nothing_grows_and_every_answer_is_right() -> None:
    report = run(MINUTES, rate=RATE)
    assert not report.faults(), report.summary()


def look(at: int, **changes: Any) -> Look:
    return Look(**{"at_s": at, "rss_bytes": 10**8, "files": 20, "threads": 10, "tasks": 30, "objects": 1, **changes})


@pytest.mark.parametrize(
    ("name", "step", "fault"),
    [
        ("rss_bytes", 40_000, "resident memory grew"),
        ("files", 0.1, "files grew"),
        ("threads", 0.1, "threads grew"),
        ("tasks", 0.1, "tasks grew"),
        ("latency_s", 0.0001, "latency drifted"),
    ],
)
def test_the_soak_sees_what_it_is_there_to_see(name: str, step: float, fault: str) -> None:
    start = {"latency_s": 0.002, **({name: 0.002} if name == "latency_s" else {})}
    base = vars(look(0, **start))
    report = Report(1.0, looks=[look(i, **{**start, name: base[name] + i * step}) for i in range(200)])
    report.idle_before = report.idle_after = look(0, **start)
    report.sessions_left = 0
    assert any(found.startswith(fault) for found in report.faults())
    report.looks = [look(i, **start) for i in range(200)]
    assert report.faults() == []


@pytest.mark.parametrize(
    ("names", "threads", "fault"),
    [
        (("MainThread", "engine-counter"), 14, ""),
        (("MainThread", "engine-counter", "aside_4"), 13, "threads were left over: aside_4"),
        (("MainThread", "engine-counter", "engine-other"), 12, "threads were left over: engine-other"),
        (("MainThread", "engine-counter", "run-other"), 12, "threads were left over: run-other"),
        (("MainThread", "engine-counter", "engine-counter"), 12, "threads were left over: engine-counter"),
        (("MainThread", "engine-counter"), 15, "threads of libraries"),
    ],
)
def test_a_thread_that_should_have_ended_is_seen(names: tuple[str, ...], threads: int, fault: str) -> None:
    report = Report(1.0, sessions_left=0, looks=[look(i, latency_s=0.002) for i in range(200)])
    report.idle_before = look(0, latency_s=0.002, names=("MainThread", "engine-counter"), threads=12)
    report.idle_after = look(1, latency_s=0.002, names=names, threads=threads)
    found = report.faults()
    assert found == [] if not fault else len(found) == 1 and found[0].startswith(fault)


def test_a_server_that_does_not_say_what_it_holds_is_a_fault() -> None:
    report = Report(1.0, sessions_left=0, looks=[look(i, latency_s=0.002, tasks=-1) for i in range(200)])
    report.idle_before = report.idle_after = look(0, latency_s=0.002, tasks=-1)
    assert report.faults() == ["the server did not say what it holds"]


def test_threads_have_names_of_any_kind() -> None:
    line = "watched tasks=42 objects=7 threads=MainThread,Thread-1 (_poll_wrapper),engine-counter"
    assert watched(line) == (42, 7, ("MainThread", "Thread-1 (_poll_wrapper)", "engine-counter"))
    assert watched("2026-01-01 INFO stopped") is None
