"""Everything that one run of the benchmarks keeps open: servers, the load generator, the ceiling."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cellar_client
import numpy as np

from benchmarks import network
from benchmarks.ceiling import Ceiling
from benchmarks.generator import Generator, Load, Window
from benchmarks.ratios import rounds
from benchmarks.serving import ZOO, Served, served, started


class BitsError(RuntimeError):
    """A served sequence has other bits than the batch of one."""


@dataclass(frozen=True)
class Scale:
    """How much is measured: pairs of windows where an aim hangs on them and elsewhere, seconds of each window; searches
    of the highest load, halvings in each, and how long what was found must then hold; loads of arrivals."""

    num_pairs: int = 30
    few_pairs: int = 5
    window_s: float = 0.5
    span_s: float = 4.0
    hold_s: float = 4.0
    held_s: float = 60.0
    overload_s: float = 20.0
    halvings: int = 5
    num_searches: int = 3
    loads: Sequence[float] = (0.5, 0.8, 1.2, 1.5)
    num_sequences: int = 20_000
    num_sessions: int = 1_000_000

    @staticmethod
    def quick() -> Scale:
        """A look, no measurement."""
        return Scale(2, 2, 0.3, 1.0, 1.0, 2.0, 2.0, 2, 1, num_sequences=1000, num_sessions=10_000)

    @staticmethod
    def short() -> Scale:
        """A measurement in a quarter of an hour."""
        return Scale(num_pairs=10, few_pairs=4, span_s=3.0, num_searches=2, loads=(0.8,))


@dataclass
class Arm:
    """A load on a server, and what its windows cost the server."""

    load: Load
    server: Served
    num_messages: int = 0
    server_cpu_s: float = 0.0

    def window(
        self, seconds: float, arrivals: np.ndarray | None = None, save: Path | None = None, drain_s: float = 30.0
    ) -> Window:
        """One window, the server's processor time counted. What was refused is in the window's errors."""
        before = self.server.cpu_s()
        window = self.load.window(seconds, arrivals, save, drain_s)
        self.server_cpu_s += self.server.cpu_s() - before
        self.num_messages += window.messages
        return window

    @property
    def server_us(self) -> float:
        """Microseconds of the server's processor time a message, in all windows so far."""
        return 1e6 * self.server_cpu_s / max(self.num_messages, 1)


class Stand:
    """Opened once a run. flags: the Cellar servers to measure, by name; triton: where nvidia-pytriton is installed."""

    def __init__(
        self, folder: Path, scale: Scale, flags: Mapping[str, Sequence[str]], triton: Path | None = None
    ) -> None:
        self.folder, self.scale, self.flags, self.triton = folder, scale, flags, triton
        self.records: dict[str, Any] = {}
        self.zoo = folder / "zoo"
        self._running: dict[str, Served] = {}
        self._open = ExitStack()

    def __enter__(self) -> Stand:
        with ExitStack() as stack:
            has_int8 = any(map(is_quantised, self.flags.values()))
            network.write_entry(self.zoo, has_int8=has_int8)
            if (ZOO / "describe").exists():
                shutil.copytree(ZOO / "describe", self.zoo / "describe")
            network.write_ceiling(self.folder / "bare.onnx")
            network.write_ceiling(self.folder / "padded.onnx", is_padded=True)
            self.ceiling = Ceiling(self.folder / "bare.onnx")
            self.generator = stack.enter_context(Generator())
            self.ours = {name: stack.enter_context(served(self.zoo, extra=each)) for name, each in self.flags.items()}
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    @property
    def first(self) -> tuple[str, Served]:
        """The Cellar server that the comparisons of a single one use."""
        return next(iter(self.ours.items()))

    def _started(self, *words: str) -> Served:
        key = " ".join(words)
        if key not in self._running:
            self._running[key] = self._open.enter_context(started([sys.executable, "-m", *words]))
        return self._running[key]

    def echo(self, kind: str) -> Served:
        return self._started("benchmarks.echo", kind)

    def comparison(self, scheduler: str, max_rows: int = 64) -> Served:
        words = ["benchmarks.comparison", scheduler, "--models", str(self.folder), "--max-rows", str(max_rows)]
        return self._started(*words)

    def generating(self, max_rows: int) -> Served:
        return self._started("benchmarks.generating", "--models", str(self.zoo), "--max-rows", str(max_rows))

    def arm(self, server: Served, kind: str, **options: object) -> Arm:
        return Arm(self.generator.open(kind, server.address, **options), server)

    def rounds(
        self, key: str, arms: Mapping[str, Callable[[], Any]], num_rounds: int, *, is_warm: bool = False
    ) -> dict[str, list[Any]]:
        """`ratios.rounds`, kept in the records."""
        measured = rounds(arms, num_rounds, is_warm=is_warm)
        self.records[key] = measured
        return measured

    def check_bits(self, server: Served, beside: Callable[[], None], count: int = 24) -> int:
        """Sequences through Predict and, in chunks, through a session, while `beside` has the server under load; each
        compared to the batch of one. Their steps. BitsError where one has other bits."""
        rng = np.random.default_rng(3)
        sequences = [rng.standard_normal((int(n), network.WIDTH), np.float32) for n in rng.integers(1, 60, count)]
        wanted = [self.ceiling.alone(sequence) for sequence in sequences]
        beside()
        with cellar_client.Client(server.address) as client:
            got = client.predict_many(network.NAME, sequences)
            with client.session(network.NAME) as session:
                longest = max(sequences, key=len)
                cuts = np.split(longest, [1, len(longest) // 2])
                chunks = np.concatenate([np.asarray(session.step(each)) for each in cuts if len(each)])
        if not all(np.array_equal(np.asarray(a), b) for a, b in zip(got, wanted, strict=True)):
            raise BitsError("Predict: other bits than the batch of one")
        if not np.array_equal(chunks, self.ceiling.alone(longest)):
            raise BitsError("a session in chunks: other bits than the batch of one")
        return sum(map(len, sequences)) + len(longest)


def is_quantised(flags: Sequence[str]) -> bool:
    """Whether a server computes in less than float32, so that its bits are no promise."""
    return any("int8" in flag for flag in flags)
