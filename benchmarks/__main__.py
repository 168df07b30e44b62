"""Measures Cellar beside its ceilings in one run and writes RESULTS.md (`make bench`; --quick for a short look)."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import network
from benchmarks.ceiling import Ceiling
from benchmarks.load import Load, UnaryLoad
from benchmarks.ratios import compare, sequence_lengths
from benchmarks.scoring import memory_of_scoring, write_sequences
from benchmarks.serving import Served, served, started
from benchmarks.wire import Wire

RESULTS = Path(__file__).parent / "RESULTS.md"
ARMS = ["frames", "messages", "unary", "predict", "score", "memory"]
PACKAGES = ["cellar-serving", "grpcio", "onnxruntime", "numpy", "protobuf"]


def machine() -> str:
    """Processor, cores and versions, in one line each."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    cores = len(os.sched_getaffinity(0))
    return f"{name}, {cores} cores; {platform.system()}; Python {platform.python_version()}; {versions}"


class Runner:
    """One event loop for the load client, entered from measuring functions that are plain calls."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()

    def load(self, address: str, num_streams: int, num_sessions: int, depth: int = 1) -> Load:
        made = Load(address, num_streams, num_sessions, depth)
        self.runner.run(made.open())
        return made

    def window(self, load: Load, window_s: float) -> Callable[[], float]:
        return lambda: self.runner.run(load.window(window_s))

    def close(self, *loads: Load) -> None:
        for load in loads:
            self.runner.run(load.close())


def frames(server: Served, runner: Runner, ceiling: Ceiling, pairs: int, window_s: float) -> list[str]:
    load = runner.load(server.address, 1, 256, depth=2)
    measured = compare(runner.window(load, window_s), lambda: ceiling.steps_per_s(256, window_s), pairs)
    runner.close(load)
    return [
        "one stream of 256 sessions, one step each a frame",
        f"{measured.ours:,.0f} steps/s",
        f"raw ONNX Runtime, batch 256: {measured.ceiling:,.0f} steps/s",
        str(measured),
        ">= 0.8",
    ]


def messages(server: Served, echo: Served, runner: Runner, streams: int, pairs: int, window_s: float) -> list[str]:
    """`streams` streams of one session, one step a message; latency where there is one stream."""
    ours, theirs = runner.load(server.address, streams, 1), runner.load(echo.address, streams, 1)
    measured = compare(runner.window(ours, window_s), runner.window(theirs, window_s), pairs)
    p50_ms = [1e3 * float(np.median(load.take_latencies_s())) for load in (ours, theirs)]
    runner.close(ours, theirs)
    return [
        f"{streams} stream(s) of one session, one step a message",
        f"{measured.ours:,.0f} steps/s, p50 {p50_ms[0]:.2f} ms",
        f"stream echo, same load client: {measured.ceiling:,.0f} messages/s, p50 {p50_ms[1]:.2f} ms",
        str(measured),
        ">= 0.6" if streams > 1 else "",
    ]


def unary(server: Served, echo: Served, runner: Runner, sessions: int, pairs: int, window_s: float) -> list[str]:
    """`sessions` callers, a unary call a step."""
    ours, theirs = UnaryLoad(server.address, sessions), UnaryLoad(echo.address, sessions, opens=False)
    for load in (ours, theirs):
        runner.runner.run(load.open())
    measured = compare(
        lambda: runner.runner.run(ours.window(window_s)), lambda: runner.runner.run(theirs.window(window_s)), pairs
    )
    for load in (ours, theirs):
        runner.runner.run(load.close())
    return [
        f"{sessions} sessions, a unary call a step",
        f"{measured.ours:,.0f} steps/s",
        f"unary echo, same load client: {measured.ceiling:,.0f} calls/s",
        str(measured),
        "",
    ]


def predicting(server: Served, ceiling: Ceiling, count: int, pairs: int) -> list[str]:
    import cellar_client

    rng = np.random.default_rng(1)
    lengths = sequence_lengths(count)
    sequences = [rng.standard_normal((length, network.WIDTH), np.float32) for length in lengths]
    with cellar_client.Client(server.address) as client:

        def ours() -> float:
            begun = time.perf_counter()
            answers = client.predict_many(network.NAME, sequences)
            took_s = time.perf_counter() - begun
            if [len(answer) for answer in answers] != list(lengths):
                raise ValueError("predict_many lost emissions")
            return count / took_s

        client.predict_many(network.NAME, sequences[:500])
        ceiling.rows_per_s(sequences[:500])
        measured = compare(ours, lambda: ceiling.rows_per_s(sequences), pairs, is_warm=True)
    return [
        f"{count:,} sequences of 1 to {lengths.max()} steps, mean {lengths.mean():.1f}, by predict_many",
        f"{measured.ours:,.0f} sequences/s",
        f"raw ONNX Runtime, equal lengths, 256 a run: {measured.ceiling:,.0f} sequences/s",
        str(measured),
        ">= 0.5",
    ]


def memory(zoo: Path, runner: Runner, count: int) -> list[str]:
    """Resident bytes a session in a fresh server: opened only, and stepped once."""
    row = 4 * network.STATE_SIZE
    limit = ["--max-sessions", str(count + 10_000)]
    with served(zoo, extra=limit) as server, Wire(server.address) as wire:
        per_stream = 2000
        # what one frame of that size costs the process once and for all is no session's
        warm = runner.load(server.address, 1, per_stream)
        for _ in range(6):
            runner.runner.run(warm.step_once())
        before, kept = server.resident_bytes(), wire.counters(network.NAME).stored_answer_bytes
        load = runner.load(server.address, count // per_stream, per_stream)
        opened = (server.resident_bytes() - before) / count
        runner.runner.run(load.step_once())
        stored = (wire.counters(network.NAME).stored_answer_bytes - kept) / count
        stepped = (server.resident_bytes() - before) / count
        runner.close(warm, load)
    return [
        f"{count:,} live sessions, resident bytes each; state row {row}",
        f"never stepped {opened:,.0f}; stepped once {stepped:,.0f}, of which stored answers {stored:,.0f}",
        f"row + {stepped - stored - row:,.0f} without stored answers",
        "",
        "<= row + 150",
    ]


def scoring(server: Served, ceiling: Ceiling, folder: Path, count: int, pairs: int) -> list[str]:
    """The whole `cellar score` of a Parquet file, the program's start included; its peak memory for two sizes."""
    rng = np.random.default_rng(1)
    sequences = [rng.standard_normal((length, network.WIDTH), np.float32) for length in sequence_lengths(count)]
    path, longer = folder / "sequences.parquet", folder / "longer.parquet"
    write_sequences(path, count)
    write_sequences(longer, 3 * count)
    peaks: list[int] = []

    def ours() -> float:
        begun = time.perf_counter()
        peaks.append(memory_of_scoring(server.address, path, folder / "out.parquet"))
        return count / (time.perf_counter() - begun)

    measured = compare(ours, lambda: ceiling.rows_per_s(sequences), pairs, is_warm=True)
    peak_longer = memory_of_scoring(server.address, longer, folder / "out.parquet")
    return [
        f"`cellar score` of a Parquet file of {count:,} sequences; peak resident size, and for three times as many",
        f"{measured.ours:,.0f} sequences/s, {max(peaks) / 1e6:.0f} MB, {peak_longer / 1e6:.0f} MB",
        f"raw ONNX Runtime, equal lengths, 256 a run: {measured.ceiling:,.0f} sequences/s",
        str(measured),
        ">= 0.5, memory the same",
    ]


def report(rows: list[list[str]], notes: list[str]) -> str:
    """The page: where, how, and a table of what."""
    head = ["measured", "Cellar", "beside it", "ratio: median (quartiles)", "aim"]
    table = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    how = (
        "LSTM, 2 layers of 256, 64 inputs and outputs, float32, random weights. Windows of the two arms alternate "
        "(AB, BA, ...) in one run; a ratio is that of neighbouring windows. The server and the stream echo are "
        "processes of their own, not pinned; ONNX Runtime has one thread in all arms; the load client is Python and "
        "shares the cores. The raw arm uses plain h and c inputs with outputs preallocated through IOBinding."
    )
    return "\n".join(["# Results", "", machine(), "", how, "", *table, "", *[f"- {note}" for note in notes], ""])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short windows, small counts: a look, no measurement")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the page goes")
    parser.add_argument("--sessions", type=int, default=1_000_000, help="live sessions of the memory arm (4.5 kB each)")
    parser.add_argument("--only", nargs="+", choices=ARMS, default=ARMS, help="which arms (default: all)")
    given = parser.parse_args()
    pairs, window_s = (2, 0.5) if given.quick else (8, 1.0)
    begun = time.perf_counter()
    rows, notes = [], []

    def add(row: list[str]) -> None:
        rows.append(row)
        print(" | ".join(row), flush=True)

    with tempfile.TemporaryDirectory(prefix="cellar-bench-") as made:
        zoo = Path(made) / "zoo"
        network.write_entry(zoo)
        network.write_ceiling(Path(made) / "ceiling.onnx")
        ceiling, runner = Ceiling(Path(made) / "ceiling.onnx"), Runner()
        with served(zoo) as server, started([sys.executable, "-m", "benchmarks.echo"]) as echo:
            if "frames" in given.only:
                add(frames(server, runner, ceiling, pairs, window_s))
            if "messages" in given.only:
                for streams in (64, 1):
                    add(messages(server, echo, runner, streams, pairs, window_s))
            if "unary" in given.only:
                add(unary(server, echo, runner, 64, pairs, window_s))
            if "predict" in given.only:
                add(predicting(server, ceiling, 1000 if given.quick else 20_000, 1 if given.quick else 3))
            if "score" in given.only:
                add(scoring(server, ceiling, Path(made), 1000 if given.quick else 20_000, 1 if given.quick else 3))
        if "memory" in given.only:
            add(memory(zoo, runner, 10_000 if given.quick else given.sessions))
    if set(given.only) != set(ARMS):
        notes.append(f"Only these arms were run: {', '.join(given.only)}.")
    notes.append(f"The whole run took {time.perf_counter() - begun:.0f} s{' (--quick)' if given.quick else ''}.")
    given.output.write_text(report(rows, notes))
    print(*notes, f"written to {given.output}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
