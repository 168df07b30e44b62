"""Real processes for fault tests: a Redis, servers on fixed ports, a proxy that cuts connections. Loopback only."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cellar_client
import numpy as np
import pytest

from benchmarks.serving import Served, started

REDIS = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(REDIS is None, reason="redis-server is not installed (Debian: redis-server)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Redis:
    """A redis-server on a port of its own, whose data outlive a kill."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = folder
        self.start()

    def start(self) -> None:
        assert REDIS is not None
        self.process = subprocess.Popen(
            f"{REDIS} --bind 127.0.0.1 --port {self.port} --appendonly yes --appendfsync always".split(),
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                probe.sendall(b"PING\r\n")
                if probe.recv(16).startswith(b"+PONG"):
                    return
            time.sleep(0.02)
        raise RuntimeError("redis-server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self, seconds: float) -> None:
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.kill()


class Host:
    """A server on one port that can be killed, paused and started again."""

    def __init__(self, zoo: Path, extra: Sequence[str] = (), *, module: str = "cellar_server") -> None:
        self.zoo, self.extra, self.module = zoo, list(extra), module
        self._stack = ExitStack()
        self.server = self._start("127.0.0.1:0")
        self.address = self.server.address

    def _start(self, address: str) -> Served:
        command = [sys.executable, "-m", self.module, "--listen", address, "--models", str(self.zoo), *self.extra]
        return self._stack.enter_context(started(command))

    @property
    def is_running(self) -> bool:
        return self.server.process.poll() is None

    def kill(self) -> None:
        """SIGKILL: nothing is written, nobody is told."""
        self.server.process.kill()
        self.server.process.wait()

    def terminate(self) -> None:
        """SIGTERM: it drains and goes."""
        self.server.terminate()

    def pause(self, seconds: float) -> None:
        """SIGSTOP for a time: it comes back believing that nothing happened."""
        self.server.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        if self.is_running:
            self.server.process.send_signal(signal.SIGCONT)

    def start(self) -> None:
        self.server = self._start(self.address)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.server.process.send_signal(signal.SIGCONT)
        self._stack.close()


class Proxy:
    """Passes TCP connections on to a server, and cuts them after so many bytes where it is told to."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._left = -1  # bytes until the cut; -1: none is due
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, num_bytes: int) -> None:
        """Cuts every connection when so many more bytes have passed."""
        with self._lock:
            self._left = num_bytes

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, 2)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.add((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink, (near, far)), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    keep = len(data)
                    if self._left >= 0:
                        keep = min(keep, self._left)
                        self._left -= keep
                sink.sendall(data[:keep])
                if keep < len(data):
                    self._cut_all()
        self._cut(pair)

    def _cut_all(self) -> None:
        with self._lock:
            self._left = -1
            pairs = list(self._pairs)
            self.cuts += 1
        for pair in pairs:
            self._cut(pair)

    def _cut(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for each in pair:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut_all()


@contextmanager
def running(*things: Host | Redis | Proxy) -> Iterator[None]:
    """Closes them at the end, the last one first."""
    with ExitStack() as stack:
        for thing in things:
            stack.callback(thing.close)
        yield


def undisturbed(address: str, model: str, rows: np.ndarray) -> np.ndarray:
    """What a whole sequence gives: float32 [time, ...]."""
    with cellar_client.Client(address) as client:
        return np.asarray(client.predict(model, rows))
