"""What the server counts is exact: runs, rows, steps, bytes. Every number follows from what was sent."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import numpy as np
import pytest
from cellar_proto.v1 import inference_pb2 as pb
from cellar_proto.v1 import models_pb2

from benchmarks import network
from benchmarks.serving import served
from benchmarks.wire import Wire

# bytes of one stored answer: 64 float32 and, beside them, where the chunk started and ended and its digest
STORED_BYTES = 4 * network.WIDTH + 24


class Stream:
    """One stream of sessions that sends a frame and waits for all its answers."""

    def __init__(self, wire: Wire, count: int) -> None:
        self._requests: queue.SimpleQueue[pb.StreamRequest | None] = queue.SimpleQueue()
        self._replies = wire.inference.Stream(iter(self._requests.get, None), timeout=60)
        self._requests.put(pb.StreamRequest(open=pb.OpenSessions(frame_id=1, model=network.NAME, count=count)))
        self.handles = list(next(self._replies).opened.handles)
        self._frames = 1

    def send(self, start: int, steps: int = 1) -> None:
        self._frames += 1
        n = len(self.handles)
        frame = pb.Frame(frame_id=self._frames, handles=self.handles, positions=[start] * n, lengths=[steps])
        frame.inputs.data = np.full((n * steps, network.WIDTH), 0.5, "<f4").tobytes()
        self._requests.put(pb.StreamRequest(frame=frame))
        answered = 0
        while answered < n:
            answer = next(self._replies).answer
            assert not answer.errors
            answered += len(answer.handles)

    def close(self) -> None:
        self._requests.put(None)


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    zoo = tmp_path_factory.mktemp("counted") / "zoo"
    network.write_entry(zoo)
    with served(zoo) as server, Wire(server.address) as wire:
        yield wire


def counted(wire: Wire, before: models_pb2.Counters) -> tuple[int, int, int, int]:
    """Runs, rows, steps and padded steps since then."""
    now = wire.counters(network.NAME)
    return (
        now.runs - before.runs,
        now.rows - before.rows,
        now.steps - before.steps,
        now.padded_steps - before.padded_steps,
    )


def test_a_frame_of_one_step_is_one_run_of_all_its_rows(wire: Wire) -> None:
    stream, before = Stream(wire, 64), wire.counters(network.NAME)
    for position in range(16):
        stream.send(position)
    # 1,024 steps in 16 runs of 64 rows: 15.6 runs for a thousand steps
    assert counted(wire, before) == (16, 1024, 1024, 0)
    stream.close()


def test_a_frame_over_the_rows_of_a_run_takes_as_few_runs_as_hold_it(wire: Wire) -> None:
    stream, before = Stream(wire, 600), wire.counters(network.NAME)
    stream.send(0)
    assert counted(wire, before) == (3, 600, 600, 0)
    stream.close()


def test_chunks_of_many_steps_are_counted_by_the_step_and_never_padded(wire: Wire) -> None:
    stream, before = Stream(wire, 8), wire.counters(network.NAME)
    for at, steps in enumerate((16, 3, 1)):
        stream.send(sum((16, 3, 1)[:at]), steps)
    runs, rows, steps, padded = counted(wire, before)
    assert (steps, padded) == (8 * 20, 0)
    # nobody waits for a row as long as itself: each run holds all eight
    assert rows == 8 * runs
    stream.close()


def test_sequences_of_mixed_length_are_not_padded(wire: Wire) -> None:
    lengths = [1, 330, 7, 7, 24, 3, 100, 7]
    before = wire.counters(network.NAME)
    request = pb.PredictRequest(model=network.NAME, lengths=lengths)
    request.inputs.data = np.full((sum(lengths), network.WIDTH), 0.5, "<f4").tobytes()
    answer = wire.inference.Predict(request, timeout=60)
    assert list(answer.lengths) == lengths
    runs, rows, steps, padded = counted(wire, before)
    assert (steps, padded) == (sum(lengths), 0)
    assert len(lengths) <= rows
    assert runs < rows


def test_a_session_costs_its_row_and_its_stored_answer(wire: Wire) -> None:
    listed = wire.models.ListModels(models_pb2.ListModelsRequest(), timeout=10)
    assert [4 * model.manifest.state_size for model in listed.models] == [4096]
    before = wire.counters(network.NAME)
    stream = Stream(wire, 100)
    opened = wire.counters(network.NAME)
    assert opened.sessions_live - before.sessions_live == 100
    assert opened.stored_answer_bytes == before.stored_answer_bytes
    stream.send(0)
    after = wire.counters(network.NAME)
    assert after.stored_answer_bytes - before.stored_answer_bytes == 100 * STORED_BYTES
    assert after.chunks - before.chunks == 100
    # four answers are kept; the fifth takes the place of the first
    for position in range(1, 6):
        stream.send(position)
    assert wire.counters(network.NAME).stored_answer_bytes - before.stored_answer_bytes == 400 * STORED_BYTES
    stream.close()
