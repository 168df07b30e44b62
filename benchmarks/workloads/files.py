"""What the client library and the scoring command carry, and what a live session costs in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import cellar_client
import numpy as np

from benchmarks import network
from benchmarks.load import Load
from benchmarks.ratios import compare, sequence_lengths
from benchmarks.report import Line
from benchmarks.scoring import memory_of_scoring, write_sequences
from benchmarks.serving import served
from benchmarks.stand import Stand
from benchmarks.wire import Wire

NUM_PAIRS = 3
RAW = "raw, equal lengths, 256 a run"


def _sequences(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal((length, network.WIDTH), np.float32) for length in sequence_lengths(count)]


def predicting(stand: Stand) -> Iterator[Line]:
    """`predict_many` of the client library beside ONNX Runtime on rows of equal length."""
    count = stand.scale.num_sequences
    sequences = _sequences(count)
    for name, server in stand.ours.items():
        with cellar_client.Client(server.address) as client:

            def ours(client: cellar_client.Client = client) -> float:
                begun = time.perf_counter()
                answers = client.predict_many(network.NAME, sequences)
                took_s = time.perf_counter() - begun
                if [len(answer) for answer in answers] != [len(sequence) for sequence in sequences]:  # type: ignore[arg-type]
                    raise ValueError("predict_many lost emissions")
                return count / took_s

            client.predict_many(network.NAME, sequences[:500])
            stand.ceiling.rows_per_s(sequences[:500])
            measured = compare(ours, lambda: stand.ceiling.rows_per_s(sequences), NUM_PAIRS, is_warm=True)
        stand.records[f"predict: {name}"] = measured
        title = f"{count:,} sequences of 1 to {max(map(len, sequences))} steps by predict_many"
        beside = f"{RAW}: {measured.ceiling:,.0f} sequences/s"
        yield Line(title, name, f"{measured.ours:,.0f} sequences/s", beside, measured, 0.5)


def scoring(stand: Stand) -> Iterator[Line]:
    """The whole `cellar score` of a Parquet file, the program's start included; its peak memory for two sizes."""
    count = stand.scale.num_sequences
    name, server = stand.first
    path, longer, out = (stand.folder / f"{each}.parquet" for each in ("sequences", "longer", "out"))
    write_sequences(path, count)
    write_sequences(longer, 3 * count)
    sequences = _sequences(count)
    peaks: list[int] = []

    def ours() -> float:
        begun = time.perf_counter()
        peaks.append(memory_of_scoring(server.address, path, out))
        return count / (time.perf_counter() - begun)

    measured = compare(ours, lambda: stand.ceiling.rows_per_s(sequences), NUM_PAIRS, is_warm=True)
    peak_longer = memory_of_scoring(server.address, longer, out)
    stand.records["score"] = measured
    peak = f"peak {max(peaks) / 1e6:.0f} MB, for three times as many {peak_longer / 1e6:.0f} MB"
    said = f"{measured.ours:,.0f} sequences/s; {peak}"
    beside = f"{RAW}: {measured.ceiling:,.0f} sequences/s"
    yield Line(f"`cellar score` of a Parquet file of {count:,} sequences", name, said, beside, measured, 0.5)


def memory(stand: Stand) -> Iterator[Line]:
    """Resident bytes a session in a fresh server: opened only, and stepped once."""
    count, row = stand.scale.num_sessions, 4 * network.STATE_SIZE
    name, _ = stand.first
    limit = [*stand.flags[name], "--max-sessions", str(count + 10_000)]
    with served(stand.zoo, extra=limit) as server, Wire(server.address) as wire, asyncio.Runner() as runner:

        def load(num_streams: int) -> Load:
            made = Load(server.address, num_streams, per_stream)
            runner.run(made.open())
            return made

        per_stream = 2000
        # what one frame of that size costs the process once and for all is no session's
        warm = load(1)
        for _ in range(6):
            runner.run(warm.step_once())
        before, kept = server.resident_bytes(), wire.counters(network.NAME).stored_answer_bytes
        loaded = load(count // per_stream)
        opened = (server.resident_bytes() - before) / count
        runner.run(loaded.step_once())
        stored = (wire.counters(network.NAME).stored_answer_bytes - kept) / count
        stepped = (server.resident_bytes() - before) / count
        for each in (warm, loaded):
            runner.run(each.close())
    stand.records["memory"] = {"opened": opened, "stepped": stepped, "stored": stored, "row": row}
    said = f"never stepped {opened:,.0f}; stepped once {stepped:,.0f}, of which stored answers {stored:,.0f}"
    title = f"{count:,} live sessions, resident bytes each; state row {row:,}"
    yield Line(title, name, said, "bytes over the row, without stored answers", stepped - stored - row, at_most=150)
