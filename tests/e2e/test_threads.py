"""The threads of a server: all there from the start, whatever is asked of it."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import cellar_client
import numpy as np

from tests.e2e.soak import watched
from tests.fakes.zoo import write_counter

ONE = np.ones((1, 2), np.float32)
ALWAYS = ["MainThread", *(f"aside_{i}" for i in range(4)), "loader_0", "engine-counter", "run-counter"]
OF_TRANSPORT = {"native": ["transport"], "aio": ["Thread-1 (_poll_wrapper)"]}  # the latter is grpc.aio's own


@contextmanager
def watching(folder: Path) -> Iterator[tuple[str, Callable[[], list[str]], Callable[[], None]]]:
    """A server with a store that spills: its address, what tells the names of its threads, sorted, and what has it
    read its files again."""
    flags = ["--max-sessions", "40", "--when-full", "spill", "--store", f"sqlite:///{folder}/sessions.db"]
    command = [sys.executable, "-m", "tests.e2e.watched", "--listen", "127.0.0.1:0", "--models", str(folder), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said: queue.SimpleQueue[str] = queue.SimpleQueue()

        def read(stderr: IO[str]) -> None:  # whatever it says: a full pipe would hold the server up
            for line in stderr:
                said.put(line.rstrip("\n"))

        reader = threading.Thread(target=read, args=(process.stderr,))
        reader.start()
        lines = iter(lambda: said.get(timeout=30), None)

        def names() -> list[str]:
            process.send_signal(signal.SIGUSR1)
            return sorted(next(found for line in lines if (found := watched(line)))[2])

        try:
            address = next(line for line in lines if " listening on " in line).rpartition(" ")[2]
            yield address, names, lambda: process.send_signal(signal.SIGHUP)
        finally:
            process.terminate()
            process.wait()
            reader.join()


def use(address: str) -> None:
    """Everything that leaves the event loop, from eight callers at once: long runs, sessions put away and taken up
    again, a model that comes and goes."""

    def take_up(id: str) -> None:
        with cellar_client.Client(address) as client, client.resume(id) as session:
            session.step(ONE)

    with cellar_client.Client(address) as client:
        client.load("other")
        client.unload("other")
        client.predict_many("counter", [np.ones((400, 2), np.float32)] * 100)
        ids = []
        for _ in range(80):
            session = client.session("counter", keep=True)
            session.step(ONE)
            ids.append(session.id)
        with ThreadPoolExecutor(8) as callers:
            list(callers.map(take_up, ids))


def test_no_thread_starts_later_whatever_is_asked(transport: str, tmp_path: Path) -> None:
    for name in ("counter", "other"):
        write_counter(tmp_path, name)
    with watching(tmp_path) as (address, names, read_again):
        with cellar_client.Client(address) as client:
            client.unload("other")
        expected = sorted(ALWAYS + OF_TRANSPORT[transport])
        assert names() == expected
        for _ in range(2):
            use(address)
            read_again()
            assert names() == expected
