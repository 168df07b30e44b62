"""A long run of everything at once: `python -m tests.e2e.soak --minutes 60 --rate 0.25`.

One server with a store that spills, and callers that never stop: sessions that come and go, forks, copies by export and
import, generations, sessions that expire or are put away and taken up again, streams that are cut or left, slow
readers, models that are loaded and unloaded. Every answer is checked. Meanwhile memory, file handles, threads, tasks
and latency are looked at once a second; the first part of the run is warm-up and does not count. SIGINT and SIGTERM end
it early, with the report of what there was until then.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import cellar_client
import grpc
import numpy as np
from cellar_proto.v1 import inference_pb2 as pb
from cellar_proto.v1 import inference_pb2_grpc

from benchmarks.serving import ZOO, Served, started
from benchmarks.wire import Wire
from tests.fakes.zoo import write_counter

ACT = "inform(name='red door cafe';goodformeal='breakfast';area='cathedral hill';kidsallowed='no')"
MAX_SESSIONS = 400
_WATCHED = re.compile(r"watched tasks=(\d+) objects=(\d+) threads=(.+)")
WARM_UP = 0.3  # part of the run that is not compared
FLAGS = ["--max-sessions", str(MAX_SESSIONS), "--when-full", "spill", "--drain-s", "5"]
IDLE_S, SHORT_IDLE_S = 20.0, 5.0  # of sessions, and of those that are left to expire: at rate 1
CROWD_IDLE_S = 3600.0  # of the crowd's, which stand for minutes where the machine is slow


def watched(line: str) -> tuple[int, int, tuple[str, ...]] | None:
    """Tasks, objects and names of threads in what `tests.e2e.watched` prints; None: another line."""
    match = _WATCHED.fullmatch(line)
    return (int(match[1]), int(match[2]), tuple(match[3].split(","))) if match else None


@dataclass
class Look:
    """One look at the server. names: of its threads that are Python's; latency_s: of one step, median since the look
    before."""

    at_s: float
    rss_bytes: int
    files: int
    threads: int
    tasks: int
    objects: int
    latency_s: float
    names: tuple[str, ...] = ()

    @property
    def strangers(self) -> int:
        """Threads that are not Python's: gRPC's and ONNX Runtime's."""
        return self.threads - len(self.names)


@dataclass
class Report:
    """What was done, by kind, what was wrong, and how the server looked: medians of the first and the last quarter
    after the warm-up; idle_before, idle_after: without callers. cores: what the server and the callers took of the
    processors, in cores."""

    minutes: float
    rate: float = 1.0
    cores: tuple[float, float] = (0.0, 0.0)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    idle_before: Look | None = None
    idle_after: Look | None = None
    sessions_left: int = -1

    def quarters(self, name: str) -> tuple[float, float]:
        """Medians of the first and of the last quarter of the looks after the warm-up."""
        values = [getattr(look, name) for look in self.looks[int(WARM_UP * len(self.looks)) :]] or [0.0]
        quarter = max(1, len(values) // 4)
        return statistics.median(values[:quarter]), statistics.median(values[-quarter:])

    def faults(self) -> list[str]:
        """Why the run was not clean; empty: it was."""
        faults = list(self.wrong)
        first, last = self.quarters("rss_bytes")
        if last > 1.02 * first:
            faults.append(f"resident memory grew from {first / 1e6:.1f} to {last / 1e6:.1f} MB")
        for name in ("files", "threads", "tasks"):
            first, last = self.quarters(name)
            if last > first + max(3, 0.1 * first):
                faults.append(f"{name} grew from {first:g} to {last:g}")
            if name == "threads":
                continue
            before, after = getattr(self.idle_before, name), getattr(self.idle_after, name)
            if after > before + 2:
                faults.append(f"{name}: {before} before the callers came, {after} after they went")
        if any(look.tasks < 0 for look in (self.idle_before, self.idle_after) if look):
            faults.append("the server did not say what it holds")
        faults += self._threads_left()
        first, last = self.quarters("latency_s")
        if last > 1.5 * first + 0.001:
            faults.append(f"latency drifted from {1e3 * first:.2f} to {1e3 * last:.2f} ms")
        if self.sessions_left:
            faults.append(f"{self.sessions_left} sessions were left over")
        return faults

    def _threads_left(self) -> list[str]:
        """Threads that should have ended: none starts later than the server."""
        if self.idle_before is None or self.idle_after is None:
            return []
        before, after = self.idle_before, self.idle_after
        left = Counter(after.names) - Counter(before.names)
        named = sorted(left.elements())
        faults = [f"threads were left over: {', '.join(named)}"] if named else []
        if after.strangers > before.strangers + 2:
            faults.append(f"threads of libraries: {before.strangers} before the callers came, {after.strangers} after")
        return faults

    def summary(self) -> str:
        """As JSON, with the faults."""
        named = ("rss_bytes", "files", "threads", "tasks", "objects", "latency_s")
        return json.dumps(
            {
                "minutes": round(self.minutes, 1),
                "rate": self.rate,
                "cores": self.cores,
                "done": dict(self.done),
                "quarters": {name: self.quarters(name) for name in named},
                "idle": [vars(look) for look in (self.idle_before, self.idle_after) if look],
                "faults": self.faults(),
            },
            indent=1,
        )


class Soak:
    """A watched server, callers that check what they get, and the one who looks."""

    def __init__(self, server: Served, minutes: float, seed: int, rate: float = 1.0) -> None:
        self.server = server
        self.report = Report(minutes, rate)
        self._rate = rate
        self._seed = seed
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._latencies: list[float] = []
        with cellar_client.Client(server.address) as client:
            self.tokens = [token.id for token in client.generate("describe", ACT, seed=3, max_steps=30)]

    # -- callers -------------------------------------------------------------------------------------------------

    def _count(self, what: str) -> None:
        with self._lock:
            self.report.done[what] += 1

    def _check(self, what: str, found: np.ndarray, expected: np.ndarray) -> None:
        self._count(what)
        if not np.array_equal(found, expected):
            raise AssertionError(f"{what}: {found.ravel()[:4]} in place of {expected.ravel()[:4]}")

    def churn(self, rng: random.Random, client: cellar_client.Client) -> Generator[None, None, None]:
        """Sessions of a few chunks: closed, left to expire, forked, or copied by export and import."""
        while True:
            kind = rng.choice(["close", "expire", "fork", "copy"])
            session = client.session(
                "counter", keep=True, max_idle_s=SHORT_IDLE_S / self._rate if kind == "expire" else 0.0
            )
            total = self._walk("steps", rng, session, 0.0)
            yield
            if kind in ("fork", "copy"):
                twin = session.fork() if kind == "fork" else client.import_session(session.export())
                self._walk(kind, rng, twin, total)
                twin.close()
                total = self._walk("steps", rng, session, total)
            if kind != "expire":
                session.close()
            yield

    def _walk(self, what: str, rng: random.Random, session: cellar_client.Session, total: float) -> float:
        for _ in range(rng.randint(1, 6)):
            x = np.array([[rng.randint(0, 9)] * 2 for _ in range(rng.randint(1, 12))], np.float32)
            expected = total + np.cumsum(x, axis=0)
            self._check(what, np.asarray(session.step(x)), expected)
            total = float(expected[-1, 0])
        return total

    def crowd(self, rng: random.Random, client: cellar_client.Client) -> Generator[None, None, None]:
        """More sessions than the server holds: the least recently used are put away, and taken up again."""
        one, ids = np.ones((1, 2), np.float32), []
        try:
            while True:
                for _ in range(MAX_SESSIONS + 50):
                    session = client.session("counter", keep=True, max_idle_s=CROWD_IDLE_S)
                    ids.append(session.id)
                    self._check("crowd", np.asarray(session.step(one)), one)
                    yield
                while ids:
                    session = client.resume(ids[0])
                    self._check("taken up", np.asarray(session.step(one)), 2 * one)
                    session.close()
                    ids.pop(0)
                    yield
        finally:
            for id in ids:
                client.resume(id).close()

    def frames(self, rng: random.Random, client: cellar_client.Client) -> Generator[None, None, None]:
        """Streams of 16 sessions, closed or left with a short grace."""
        while True:
            with client.stream("counter") as stream:
                stream.open(16)
                for t in range(rng.randint(5, 40)):
                    outputs = np.asarray(stream.step(np.ones((16, 2), np.float32)).outputs)
                    self._check("frames", outputs.reshape(16, 2), np.full((16, 2), t + 1.0))
                    yield
                if rng.random() < 0.5:
                    stream.close_sessions()

    def generate(self, rng: random.Random, client: cellar_client.Client) -> Generator[None, None, None]:
        """Generations, some of them left in the middle."""
        while True:
            most = rng.randint(1, 40)
            found = []
            with client.generate("describe", ACT, seed=3, max_steps=30) as generation:
                for token in generation:
                    found.append(token.id)
                    if len(found) == most:
                        break
            self._check("generations", np.array(found), np.array(self.tokens[: len(found)]))
            yield

    def read_slowly(self, rng: random.Random, client: cellar_client.Client) -> Generator[None, None, None]:
        """A stream whose answers are read late, then one that is cut with its answers unread, then a cut connection."""
        while True:
            channel = grpc.insecure_channel(self.server.address, [("grpc.use_local_subchannel_pool", 1)])
            requests: list[pb.StreamRequest | None] = []
            ready = threading.Semaphore(0)

            def outgoing(
                requests: list[pb.StreamRequest | None] = requests, ready: threading.Semaphore = ready
            ) -> Iterator[pb.StreamRequest]:
                while ready.acquire() and (request := requests.pop(0)) is not None:
                    yield request

            call = inference_pb2_grpc.InferenceStub(channel).Stream(outgoing(), timeout=60)

            def send(
                request: pb.StreamRequest | None,
                requests: list[pb.StreamRequest | None] = requests,
                ready: threading.Semaphore = ready,
            ) -> None:
                requests.append(request)
                ready.release()

            grace = pb.OpenSessions(model="counter", count=32)
            grace.options.disconnect_grace_s = 0.0
            send(pb.StreamRequest(open=grace))
            handles = list(next(call).opened.handles)
            for t in range(96):  # three chunks of each session, more than the stream is read ahead
                frame = pb.Frame(frame_id=t, handles=[handles[t % 32]], positions=[t // 32 * 200], lengths=[200])
                frame.inputs.data = np.ones((200, 2), np.float32).tobytes()
                send(pb.StreamRequest(frame=frame))
            left = rng.randint(5, 96)
            while left > 0:
                answer = next(call).answer
                ends = np.cumsum(list(answer.lengths) * (len(answer.handles) if len(answer.lengths) == 1 else 1))
                sums = np.frombuffer(answer.outputs.data, np.float32).reshape(-1, 2)[ends - 1, 0]
                self._check("slowly read", sums, np.array(answer.positions))
                left -= len(answer.handles)
                yield
            call.cancel()
            send(None)
            channel.close()
            self._count("cut streams")
            yield

    def reload(self, rng: random.Random, client: cellar_client.Client) -> Generator[None, None, None]:
        """A model that is loaded, used and unloaded, with a session open on it."""
        while True:
            client.load("other")
            session = client.session("other", keep=True)
            self._check("reloads", np.asarray(session.step(np.ones((1, 2), np.float32))), np.ones((1, 2)))
            client.unload("other", force_reason="the soak goes on")
            for _ in range(20):
                yield

    def _drive(
        self, what: Callable[[random.Random, cellar_client.Client], Generator[None, None, None]], pause_s: float
    ) -> None:
        try:
            rng = random.Random(f"{self._seed} {what.__name__}")
            with (
                cellar_client.Client(self.server.address, timeout=60) as client,
                closing(what(rng, client)) as steps,
            ):
                for _ in steps:
                    if self._stop.wait(pause_s / self._rate):
                        return
        except Exception as error:
            with self._lock:
                self.report.wrong.append(f"{what.__name__}: {type(error).__name__}: {error}")
            self._stop.set()

    def _probe(self) -> None:
        """One step after another, for the latency."""
        with cellar_client.Client(self.server.address, timeout=60) as client, client.session("counter") as session:
            while not self._stop.wait(0.05 / self._rate):
                begun = time.perf_counter()
                session.step(np.zeros((1, 2), np.float32))
                with self._lock:
                    self._latencies.append(time.perf_counter() - begun)

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        self.report.idle_before = self._look()
        pauses = {self.churn: 0.01, self.crowd: 0.005, self.frames: 0.01, self.generate: 0.1}
        pauses |= {self.read_slowly: 0.1, self.reload: 0.25}
        threads = [threading.Thread(target=self._drive, args=each, daemon=True) for each in pauses.items()]
        threads.append(threading.Thread(target=self._probe, daemon=True))
        begun, cpu_s = time.monotonic(), self._cpu_s()
        for thread in threads:
            thread.start()
        while time.monotonic() - begun < 60 * self.report.minutes and not self._stop.wait(1.0):
            self.report.looks.append(look := self._look())
            if len(self.report.looks) % 60 == 0:
                self._say(look, begun)
        took_s = time.monotonic() - begun
        self.report.minutes = took_s / 60
        server_s, callers_s = (after - before for before, after in zip(cpu_s, self._cpu_s(), strict=True))
        self.report.cores = (round(server_s / took_s, 3), round(callers_s / took_s, 3))
        self._stop.set()
        for thread in threads:
            thread.join(60)
            if thread.is_alive():
                self.report.wrong.append("a caller hangs")
        self._settle()
        return self.report

    def end(self) -> None:
        """Ends the run early; its report is of what there was until then."""
        self._stop.set()

    def _cpu_s(self) -> tuple[float, float]:
        return self.server.cpu_s(), time.process_time()

    def _say(self, look: Look, begun: float) -> None:
        done = sum(self.report.done.values())
        held = f"{look.rss_bytes / 1e6:.1f} MB, {look.files} files, {look.threads} threads, {look.tasks} tasks"
        print(f"{(look.at_s - begun) / 60:.0f} min: {done} done, {held}, {1e3 * look.latency_s:.2f} ms", flush=True)

    def _settle(self) -> None:
        """Until what was left has expired, then the last look."""
        with Wire(self.server.address) as wire:
            until = time.monotonic() + 40 + IDLE_S / self._rate
            while time.monotonic() < until:
                self.report.sessions_left = wire.counters("counter").sessions_live
                if not self.report.sessions_left:
                    break
                time.sleep(0.5)
        time.sleep(1)
        self.report.idle_after = self._look()

    def _look(self) -> Look:
        process = Path(f"/proc/{self.server.process.pid}")
        self.server.process.send_signal(signal.SIGUSR1)
        tasks = objects = -1
        names: tuple[str, ...] = ()
        until = time.monotonic() + 10
        while tasks < 0 and time.monotonic() < until:
            time.sleep(0.01)
            for line in list(self.server.log):
                if found := watched(line):
                    tasks, objects, names = found
                    self.server.log.remove(line)  # each is read once
        with self._lock:
            latencies, self._latencies = self._latencies, []
        return Look(
            time.monotonic(),
            self.server.resident_bytes(),
            len(os.listdir(process / "fd")),
            len(os.listdir(process / "task")),
            tasks,
            objects,
            statistics.median(latencies) if latencies else 0.0,
            names,
        )


def run(minutes: float, seed: int = 0, rate: float = 1.0, transport: str = "auto") -> Report:
    """One run on a server and a store of its own. rate: so many times shorter are the pauses of the callers, and the
    times after which sessions expire."""
    with tempfile.TemporaryDirectory(prefix="cellar-soak-") as made:
        folder = Path(made)
        for name in ("counter", "other"):
            write_counter(folder / "zoo", name)
        (folder / "zoo" / "describe").symlink_to(ZOO / "describe")
        flags = [*FLAGS, "--models", str(folder / "zoo"), "--store", f"sqlite:///{folder}/soak.db"]
        flags += ["--max-idle-s", str(IDLE_S / rate), "--transport", transport]
        command = [sys.executable, "-m", "tests.e2e.watched", "--listen", "127.0.0.1:0", *flags]
        with started(command) as server:
            soak = Soak(server, minutes, seed, rate)
            before = {
                number: signal.signal(number, lambda *_: soak.end()) for number in (signal.SIGINT, signal.SIGTERM)
            }
            try:
                return soak.run()
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("CELLAR_SOAK_MINUTES", "60")))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=float(os.environ.get("CELLAR_SOAK_RATE", "1")))
    parser.add_argument("--transport", choices=["auto", "aio", "native"], default="auto")
    options = parser.parse_args()
    found = run(options.minutes, options.seed, options.rate, options.transport)
    print(found.summary())
    sys.exit(bool(found.faults()))
