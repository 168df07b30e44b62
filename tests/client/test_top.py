"""`cellar top` and `cellar health` against real servers."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cellar_client import AsyncClient, Client, top
from cellar_client.cli import main
from cellar_client.errors import Unavailable
from cellar_client.top import Look, Row, Watch, between, table
from rich.console import Console

from tests.contract.conftest import Running

COUNTERS = [
    "runs",
    "steps",
    "rows",
    "rows_begun",
    "sessions_live",
    "sessions_opened",
    "rows_waiting",
    "chunks_replayed",
    "first_emissions",
]
SECONDS = ["queue_s", "run_s", "first_emission_s", "store_lag_s"]


def info(**counts: Any) -> Any:
    counters = dict.fromkeys(COUNTERS, 0) | dict.fromkeys(SECONDS, 0.0) | {"refusals": {}, "sessions_ended": {}}
    return SimpleNamespace(name="m", version=1, error=None, counters=counters | counts)


def look(at_s: float, model: Any) -> Look:
    return Look("here", at_s, {("m", 1): model})


def test_rates_and_means_are_those_of_the_interval() -> None:
    before = info(runs=10, steps=100, rows=50, rows_begun=50, queue_s=1.0, run_s=0.5, refusals={"OVERLOADED": 3})
    after = info(
        runs=30,
        steps=500,
        rows=250,
        rows_begun=150,
        queue_s=1.5,
        run_s=0.54,
        first_emissions=4,
        first_emission_s=0.1,
        refusals={"OVERLOADED": 5, "CANCELLED": 2},
        sessions_live=7,
        rows_waiting=11,
        store_lag_s=0.25,
        chunks_replayed=6,
    )
    (row,) = between(look(5.0, before), look(7.0, after))
    assert row == Row(
        "here", "m/1", 7, 200.0, 10.0, 10.0, 11, pytest.approx(5.0), pytest.approx(2.0), 25.0, 2.0, 3.0, 0.25
    )


def test_a_quiet_model_has_no_means_and_a_loaded_again_one_no_negative_rates() -> None:
    (quiet,) = between(look(1.0, info(runs=4, steps=4)), look(2.0, info(runs=4, steps=4)))
    assert (quiet.steps_per_s, quiet.rows_per_run, quiet.wait_ms, quiet.run_ms) == (0.0, None, None, None)
    (again,) = between(look(1.0, info(runs=400, steps=400)), look(2.0, info(runs=3, steps=9, rows=3)))
    assert (again.steps_per_s, again.runs_per_s, again.rows_per_run) == (9.0, 3.0, 1.0)


@pytest.fixture
def busy(running: Running) -> Iterator[Running]:
    """A server with a stream that steps all the time."""
    stop = threading.Event()

    def work() -> None:
        with Client(running.address) as client, client.stream("counter") as stream:
            stream.open(8)
            while not stop.is_set():
                stream.step(np.ones((8, 2), np.float32))
            stream.close_sessions()

    worker = threading.Thread(target=work)
    worker.start()
    yield running
    stop.set()
    worker.join(20)


def test_once_prints_one_table(busy: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--interval", "0.5", "--server", busy.address]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == [word for name, _ in top.COLUMNS for word in name.split()]
    rows = {line.split()[1]: line.split() for line in lines}
    assert rows.keys() == {"broken/1", "counter/1", "other/1"}
    counter = rows["counter/1"]
    assert (counter[0], counter[2]) == (busy.address, "8")
    assert float(counter[3].replace(",", "")) > 0
    assert counter[5] == "8.0"
    assert float(counter[7]) >= 0
    assert float(counter[8]) > 0
    assert rows["other/1"][3:9] == ["0", "0", "-", "0", "-", "-"]
    assert rows["broken/1"][-2:] == ["broken:", "MODEL_BROKEN"]


def test_a_server_that_does_not_answer_is_a_line_beside_the_others(
    busy: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "PATIENCE_S", 0.3)
    both = f"127.0.0.1:1,{busy.address}"
    assert main(["top", "--once", "--interval", "0.2", "--server", both]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("127.0.0.1:1 ") and "no answer: Unavailable" in line]
    assert [line for line in lines if line.startswith(f"{busy.address} ") and "counter/1" in line]
    assert main(["top", "--once", "--interval", "0.2", "--server", "127.0.0.1:1"]) == 1


def test_a_look_is_one_call_a_server() -> None:
    calls: list[str] = []

    class Fake:
        def __init__(self, address: str) -> None:
            self.address = address

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None:
            calls.append(f"closed {self.address}")

        def models(self) -> list[Any]:
            calls.append(self.address)
            if self.address == "b" and calls.count("b") == 2:
                raise Unavailable("gone")
            return [info(steps=10 * len(calls))]

    now = [0.0]
    with Watch(["a", "b"], Fake, clock=lambda: now[0]) as watch:  # type: ignore[arg-type]
        assert watch.look() == []
        now[0] += 1
        rows = watch.look()
        assert [type(row) for row in rows] == [Row, Look]
        now[0] += 1
        # what it did while it was away is of the interval since its last answer
        rows = watch.look()
        assert [row.server for row in rows if isinstance(row, Row)] == ["a", "b"]
    assert [each for each in calls if each in ("a", "b")].count("a") == 3
    assert calls[-2:] == ["closed b", "closed a"]


def test_a_table_is_wide_enough_for_large_numbers() -> None:
    out = io.StringIO()
    row = Row("h:1", "m/1", 1_000_000, 1e6, 1e5, 256.0, 16384, 12.5, 4.8, None, 0.0, 0.0, 0.0)
    Console(file=out, width=200).print(table([row]))
    assert "1,000,000" in out.getvalue()
    assert "..." not in out.getvalue()
    assert "…" not in out.getvalue()


def test_ctrl_c_ends_it_cleanly(busy: Running) -> None:
    program = str(Path(sys.executable).parent / "cellar")
    terminal, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160", "LINES": "40"}
    process = subprocess.Popen(
        [program, "top", "--interval", "0.2", "--server", busy.address],
        stdin=side,
        stdout=side,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever runs tests may ignore it
    )
    os.close(side)
    seen = b""
    try:
        deadline = time.monotonic() + 30
        while b"counter/1" not in seen:
            assert time.monotonic() < deadline, seen
            seen += os.read(terminal, 65536)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):
            while chunk := os.read(terminal, 65536):
                seen += chunk
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert seen.rstrip().endswith((b"\x1b[?1049l", b"\x1b[?25h"))  # the screen is as it was
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()
        os.close(terminal)


def test_an_interval_that_would_load_the_server_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--interval", "0.01"]) == 1
    assert "0.2 seconds or more" in capsys.readouterr().err


def test_health_is_an_exit_status(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--server", running.address]
    assert main(["health", *where]) == 0
    assert main(["health", "counter", *where]) == 0
    assert main(["health", "broken", *where]) == 1
    assert main(["health", "nowhere", *where]) == 1
    assert main(["health", "--timeout", "0.2", "--server", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().out.split() == ["SERVING"] * 2 + ["NOT_SERVING"] * 3


def test_the_asynchronous_client_asks_the_same(running: Running) -> None:
    async def ask() -> list[bool]:
        async with AsyncClient(running.address) as client:
            return [await client.is_serving(model) for model in ("", "counter", "broken")]

    async def ask_nobody() -> bool:
        async with AsyncClient("127.0.0.1:1") as client:
            return await client.is_serving(timeout=0.2)

    assert asyncio.run(ask()) == [True, True, False]
    assert asyncio.run(ask_nobody()) is False
