"""Random faults against two servers on one Redis, every output compared with an undisturbed run's.

`python -m tests.e2e.faults --seconds 600 --durability step` runs it and prints what docs/reliability.md reports. It
starts its own Redis, servers and proxies on free ports of the loopback, and ends them.
"""

from __future__ import annotations

import argparse
import collections
import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import cellar_client
import numpy as np

from benchmarks import network
from benchmarks.serving import ZOO, served
from tests.e2e.cluster import Host, Proxy, Redis

LEASE_S = 1.0
# Seconds within which everybody must have an answer again after a fault.
HUNG_S = 60.0
ROWS = 400
ACT = "inform(name='red door cafe';goodformeal='breakfast';area='cathedral hill';kidsallowed='no')"


@dataclass
class Report:
    """What happened. faults: by kind; between_commit_and_reply: those that were seen to land there; steps: answered;
    lost, doubled: answers of a session that took in too little or too much; wrong: any other bits; failed: calls that
    gave up; back_s: seconds from each fault until everybody had an answer."""

    durability: str
    seconds: float = 0.0
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    between_commit_and_reply: int = 0
    steps: int = 0
    tokens: int = 0
    sessions: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    failed: list[str] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.wrong or self.failed)

    def summary(self) -> str:
        """As JSON, times to come back as quantiles."""
        back = sorted(self.back_s) or [0.0]
        quantiles = {
            "median": round(statistics.median(back), 2),
            "p90": round(back[int(0.9 * (len(back) - 1))], 2),
            "max": round(back[-1], 2),
        }
        return json.dumps({**vars(self), "back_s": quantiles, "num_faults": self.faults.total()}, indent=1)


class Harness:
    """Two faulty servers behind proxies, a Redis, callers that step without end, and what disturbs them."""

    def __init__(self, stack: ExitStack, folder: Path, durability: str, seed: int) -> None:
        self.report = Report(durability)
        self._rng = np.random.default_rng(seed)
        self._stop = threading.Event()
        self._seen: dict[str, float] = {}  # of each caller: when its last answer came
        self._lock = threading.Lock()
        zoo = folder / "zoo"
        zoo.mkdir()
        network.write_entry(zoo)
        (zoo / "describe").symlink_to(ZOO / "describe")
        self.rows = self._rng.standard_normal((ROWS, network.WIDTH), np.float32)
        with served(zoo) as plain, cellar_client.Client(plain.address) as client:
            self.whole = np.asarray(client.predict(network.NAME, self.rows))
            self.tokens = [token.id for token in client.generate("describe", ACT, **self._sampling)]
        (folder / "redis").mkdir()
        self.redis = Redis(folder / "redis")
        stack.callback(self.redis.close)
        flags = ["--store", self.redis.url, "--durability", durability, "--lease-s", str(LEASE_S), "--drain-s", "5"]
        self.hosts = []
        for _ in range(2):
            self.hosts.append(Host(zoo, flags, module="tests.e2e.faulty"))
            stack.callback(self.hosts[-1].close)
        self.proxies = [Proxy(host.address) for host in self.hosts]
        for proxy in self.proxies:
            stack.callback(proxy.close)
        servers = [proxy.address for proxy in self.proxies]
        # one client of each order, so that both servers hold sessions at any time
        self.clients = [
            stack.enter_context(cellar_client.Client(order, timeout=HUNG_S, keepalive_s=0.5))
            for order in (servers, servers[::-1])
        ]

    _sampling = {"seed": 3, "temperature": 0.9, "max_steps": 60}  # noqa: RUF012

    # -- callers -------------------------------------------------------------------------------------------------

    def _answered(self, who: str) -> None:
        self._seen[who] = time.monotonic()

    def _compare(self, found: np.ndarray, at: int) -> None:
        """Answers to the rows from `at` on: float32 [steps, ...]."""
        expected = self.whole[at : at + len(found)]
        with self._lock:
            self.report.steps += len(found)
            if found.tobytes() == expected.tobytes():
                return
            if len(found) < len(expected):
                self.report.lost += 1
            else:
                # no later state of the sequence repeats an earlier one: other bits come of too much or too little
                self.report.doubled += 1

    def _step(self, who: str, client: cellar_client.Client) -> None:
        rng = np.random.default_rng(abs(hash(who)) % 2**32)
        while not self._stop.is_set():
            with self._lock:
                self.report.sessions += 1
            session = client.session(network.NAME, keep=True)
            at = 0
            while at < ROWS and not self._stop.is_set():
                chunk = self.rows[at : at + int(rng.integers(1, 5))]
                found = np.asarray(session.step(chunk))
                self._answered(who)
                self._compare(found, at)
                at += len(chunk)
                if session.position != at:
                    with self._lock:
                        self.report.doubled += session.position > at
                        self.report.lost += session.position < at
                    return
                self._stop.wait(0.002)
            session.close()

    def _frames(self, who: str, client: cellar_client.Client) -> None:
        while not self._stop.is_set():
            with client.stream(network.NAME, timeout=HUNG_S) as stream:
                stream.open(8)
                for row in range(ROWS):
                    if self._stop.is_set():
                        return
                    answer = stream.step(np.repeat(self.rows[row : row + 1], 8, 0))
                    self._answered(who)
                    for piece in np.asarray(answer.outputs):
                        self._compare(piece[None], row)
                stream.close_sessions()

    def _generate(self, who: str, client: cellar_client.Client) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            found = []
            id = f"story-{self.report.durability}-{number}"
            for token in client.generate("describe", ACT, session_id=id, **self._sampling):  # type: ignore[arg-type]
                found.append(token.id)
                self._answered(who)
                self._stop.wait(0.02)
            with self._lock:
                self.report.tokens += len(found)
                self.report.wrong += found != self.tokens
            # under `interval` a session that nobody steps may be lost with its server, and nobody asks for it again
            with suppress(*(cellar_client.SessionNotFound,) * (self.report.durability == "interval")):
                client.close_session(id)

    def _run(self, what: Callable[[str, cellar_client.Client], None], who: str, client: cellar_client.Client) -> None:
        try:
            what(who, client)
        except cellar_client.CellarError as error:
            if not self._stop.is_set():
                with self._lock:
                    self.report.failed.append(f"{who}: {error.name}: {error.message}")
        finally:
            self._seen.pop(who, None)

    # -- faults --------------------------------------------------------------------------------------------------

    def kill(self, place: int) -> None:
        """SIGKILL at any moment."""
        self.hosts[place].kill()
        self._start(place)

    def kill_before_reply(self, place: int) -> None:
        """SIGKILL when answers were committed and not sent, of a server that somebody uses."""
        used = self.clients[place]._links.current.address
        place = [proxy.address for proxy in self.proxies].index(used)
        process = self.hosts[place].server.process
        process.send_signal(signal.SIGUSR1)
        until = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        if process.poll() is not None:
            self.report.between_commit_and_reply += 1
            self._start(place)

    def stop(self, place: int) -> None:
        """SIGTERM: it drains."""
        self.hosts[place].terminate()
        self._start(place)

    def pause(self, place: int) -> None:
        """SIGSTOP for longer than the lease."""
        self.hosts[place].pause(2.5 * LEASE_S)

    def cut(self, place: int) -> None:
        """Connections end at a random byte."""
        self.proxies[place].cut_after(int(self._rng.integers(0, 20_000)))
        time.sleep(0.2)

    def restart_redis(self, place: int) -> None:
        """SIGKILL of the Redis, which starts again."""
        self.redis.kill()
        time.sleep(float(self._rng.uniform(0, 1)))
        self.redis.start()

    def pause_redis(self, place: int) -> None:
        """SIGSTOP of the Redis for longer than the lease."""
        self.redis.pause(1.5 * LEASE_S)

    def _start(self, place: int) -> None:
        time.sleep(float(self._rng.uniform(0, 0.5)))
        self.hosts[place].start()

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self, seconds: float, kinds: list[str] | None = None, max_faults: int = 1_000_000) -> Report:
        """Disturbs for so many seconds, or until so many faults."""
        kinds = kinds or ["kill_before_reply"] * 4 + ["kill", "kill", "cut", "cut", "pause", "stop"] + [
            "restart_redis",
            "pause_redis",
        ]
        callers = [(self._step, f"session-{i}", self.clients[i % 2]) for i in range(6)]
        callers += [(self._frames, f"frames-{i}", self.clients[i]) for i in range(2)]
        callers += [(self._generate, "generation", self.clients[0])]
        threads = [threading.Thread(target=self._run, args=caller) for caller in callers]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        self._wait_for_all(begun, len(threads))
        while time.monotonic() - begun < seconds and self.report.is_clean and self.report.faults.total() < max_faults:
            kind = kinds[int(self._rng.integers(len(kinds)))]
            at = time.monotonic()
            getattr(self, kind)(int(self._rng.integers(2)))
            self.report.faults[kind] += 1
            back = self._wait_for_all(at, len(threads))
            if back is None:
                self.report.failed.append(f"somebody had no answer within {HUNG_S:g} s after {kind}")
                break
            self.report.back_s.append(back)
            time.sleep(float(self._rng.uniform(0.1, 0.6)))
        self._stop.set()
        for thread in threads:
            thread.join(2 * HUNG_S)
            if thread.is_alive():
                self.report.failed.append(f"{thread.name} hangs")
        self.report.seconds = round(time.monotonic() - begun, 1)
        return self.report

    def _wait_for_all(self, since: float, count: int) -> float | None:
        """Seconds after `since` at which the last caller had an answer that came later; None where one has none."""
        while time.monotonic() < since + HUNG_S:
            seen = list(self._seen.values())
            if len(seen) == count and min(seen) > since:
                return time.monotonic() - since
            if self.report.failed or not self.report.is_clean:
                return 0.0
            time.sleep(0.01)
        return None


def run(
    seconds: float, durability: str, *, seed: int = 0, kinds: list[str] | None = None, max_faults: int = 1_000_000
) -> Report:
    """One run in a folder of its own."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return Harness(stack, folder, durability, seed).run(seconds, kinds, max_faults)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--durability", choices=["step", "interval"], default="step")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = run(options.seconds, options.durability, seed=options.seed)
    print(found.summary())
    sys.exit(not found.is_clean)
