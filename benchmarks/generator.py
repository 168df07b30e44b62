"""The native load generator (`native/`), driven window by window over its standard input and output."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason

from benchmarks.serving import ROOT

SOURCE = Path(__file__).parent / "native"
BUILT = ROOT / "build" / "native" / "load"
QUANTILES = ("p50", "p90", "p99", "p999", "max")


class GeneratorError(RuntimeError):
    """The generator could not be built, or said what went wrong."""


def missing() -> str:
    """What the build needs and is not here; empty where nothing is missing."""
    for program in ("cmake", "pkg-config", "c++"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if subprocess.run(["pkg-config", "--exists", "grpc++"]).returncode:
        return "libgrpc++-dev is not installed"
    return ""


def build(target: Path = BUILT) -> Path:
    """Builds the generator where it is older than its source; the program. GeneratorError where that fails."""
    sources = [path for path in SOURCE.iterdir() if path.is_file()]
    if target.exists() and target.stat().st_mtime >= max(path.stat().st_mtime for path in sources):
        return target
    if why := missing():
        raise GeneratorError(f"the load generator cannot be built: {why}")
    for command in (["-S", str(SOURCE), "-B", str(target.parent)], ["--build", str(target.parent)]):
        made = subprocess.run(["cmake", *command], capture_output=True, text=True)
        if made.returncode:
            raise GeneratorError(f"cmake {' '.join(command)}:\n{made.stdout[-2000:]}{made.stderr[-2000:]}")
    return target


@dataclass(frozen=True)
class Latency:
    """Quantiles in milliseconds; 0 where nothing was answered."""

    count: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    max: float = 0.0


@dataclass(frozen=True)
class Window:
    """What one window measured.

    seconds: from its begin until the last answer; asked_s: how long it sent. in_time_*: answered within asked_s.
    latency: from the scheduled send time, or from the send where nothing is scheduled; of a generation: to its first
    emission. gap: between two emissions of a generation. late: from the scheduled time to the send. errors: refusals by
    the name of their Reason; said: the text of the first that carried none.
    """

    seconds: float
    asked_s: float
    sent: int
    messages: int
    steps: int
    in_time_messages: int
    in_time_steps: int
    cpu_s: float
    latency: Latency = Latency()
    gap: Latency = Latency()
    late: Latency = Latency()
    errors: Mapping[str, int] = field(default_factory=dict)
    said: str = ""

    @property
    def steps_per_s(self) -> float:
        return self.steps / self.seconds

    @property
    def messages_per_s(self) -> float:
        return self.messages / self.seconds


def _reason(key: str) -> str:
    return Reason.Name(int(key)) if key.isdecimal() and int(key) in Reason.values() else key


def parse(line: str) -> Window:
    """A window's line of JSON. GeneratorError where the generator reports one, or ended."""
    if not line:
        raise GeneratorError("the load generator ended")
    said = json.loads(line)
    if "error" in said:
        raise GeneratorError(said["error"])
    latency, gap, late = (Latency(**said.pop(name)) for name in ("latency_ms", "gap_ms", "late_ms"))
    errors = {_reason(key): count for key, count in said.pop("errors").items()}
    return Window(**said, latency=latency, gap=gap, late=late, errors=errors)


class Load:
    """One load on one server, open between its windows."""

    def __init__(self, generator: Generator, name: str) -> None:
        self.generator, self.name = generator, name

    def begin(
        self, seconds: float, arrivals: np.ndarray | None = None, save: Path | None = None, drain_s: float = 30.0
    ) -> None:
        """Starts a window; `arrivals` float64 [n, 2] of seconds and steps, for the kinds that take a schedule.

        save: a file for float32 [n, 2], the steps of each call and its latency in seconds (-1 where it failed).
        drain_s: how long after the window its answers are waited for; then the rest is cancelled.
        """
        words = [f"window name={self.name} seconds={seconds} drain_s={drain_s}"]
        if arrivals is not None:
            path = self.generator.folder / f"{self.name}.schedule"
            path.write_bytes(np.ascontiguousarray(arrivals, np.float64).tobytes())
            words.append(f"schedule={path}")
        if save is not None:
            words.append(f"save={save}")
        self.generator.say(" ".join(words))

    def end(self) -> Window:
        """Waits for the window's last answer."""
        return parse(self.generator.hear())

    def window(
        self, seconds: float, arrivals: np.ndarray | None = None, save: Path | None = None, drain_s: float = 30.0
    ) -> Window:
        """One whole window."""
        self.begin(seconds, arrivals, save, drain_s)
        return self.end()

    def close(self) -> None:
        self.generator.say(f"close name={self.name}")
        self.generator.hear()


class Generator:
    """The process. Loads are opened by kind:

    stream    streams= of sessions= each; frames of steps= steps a session, depth= of them in flight; with period_s= a
              frame when it is due, else when one is answered; opens=0 for servers that give no handles
    unary     sessions= that each send a Step of steps= steps, the next when the last is answered
    predict   whole sequences that arrive by a schedule, at most limit= in flight, each with timeout_ms= to live
    generate  generations that arrive by a schedule, at most limit= in flight; texts= a file, a line each
    oip-stream, oip-unary
              the Open Inference Protocol: streams= of sessions= sequences each, or sessions= sequences by unary calls,
              messages of steps= steps, the next when one is answered; a window is a whole sequence of each
    churn     streams= that each open sessions= sessions and close them again

    All of them: address=, model=, channels= (connections that the streams or calls are dealt out to, default 1).
    """

    def __init__(self, program: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cellar-load-")
        self.folder = Path(self._folder.name)
        self._process = subprocess.Popen(
            [str(program or build())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._numbers = 0

    def open(self, kind: str, address: str, **options: object) -> Load:
        self._numbers += 1
        name = f"{kind}-{self._numbers}"
        if kind == "unary":
            options.setdefault("prefix", f"{name}-")
        words = " ".join(f"{key}={value}" for key, value in options.items())
        self.say(f"open name={name} kind={kind} address={address} {words}")
        self.hear()
        return Load(self, name)

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """One line of answer. GeneratorError where it is one."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise GeneratorError("the load generator ended")
        if line.startswith('{"error"'):
            raise GeneratorError(json.loads(line)["error"])
        return line

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()
