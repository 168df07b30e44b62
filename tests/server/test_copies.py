"""What is copied on the way from a message to a run and back, and how often an engine waits: exact counts.

Inputs, outputs and states of the counter are four bytes a step and a row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.inference_pb2 import PredictRequest as PredictMessage
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server import zoo
from cellar_server.engine.inbox import NoLane
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.messages import (
    Call,
    FrameRequest,
    GenerateRequest,
    PredictRequest,
    PredictRows,
    Rows,
    StepRequest,
)

from tests.fakes.bench import Bench
from tests.fakes.runtime import CounterRuntime, counter_model, generator_model
from tests.fakes.zoo import read_manifest, write_counter, write_manifest
from tests.server.test_engine import QUICK, SLOW, Desk, Gate
from tests.server.test_express import rows


def copied(bench: Bench) -> dict[str, int]:
    """Bytes by place, once everything is answered and stored."""
    bench.run()
    bench.sessions.settle()
    bench.sessions.settle_late()
    return bench.sessions.core.copied_bytes


def make(**config: Any) -> Bench:
    return Bench(counter_model(CounterRuntime()), **config)


def shuffled(handles: list[int]) -> list[int]:
    return [*handles[1::2], *handles[::2]]


def test_a_columnar_frame_is_read_and_its_states_come_back() -> None:
    bench = make()
    handles = bench.open(256)
    bench.send(handles, [0] * 256, [[1.0]] * 256)
    assert copied(bench) == {"read": 1024, "state": 1024, "store": 1024}
    # sessions that do not lie in a row: their states are put together first
    bench.send(shuffled(handles), [1] * 256, [[1.0]] * 256)
    assert copied(bench) == {"read": 2048, "state": 3072, "store": 2048}


def test_a_chunk_of_several_runs_keeps_its_outputs_and_its_state() -> None:
    bench = make(run_budget_ms=0.05)  # 10 us a step and a cell, and 10 before: two steps a run
    (handle,) = bench.open()
    bench.send([handle], [0], [[1.0] * 6])
    assert copied(bench) == {"read": 24, "keep": 24, "state": 12, "store": 24}
    # two of them at once: their steps are gathered, and their outputs put behind one another
    bench = make(run_budget_ms=0.375)  # twelve steps of two rows
    bench.send(bench.open(2), [0, 0], [[1.0] * 24] * 2)
    assert bench.sessions.has_ready
    assert copied(bench) == {"read": 192, "gather": 192, "keep": 192, "state": 16, "pack": 192, "store": 192}


def test_frames_of_many_streams_are_put_behind_one_another_and_answered_in_place() -> None:
    bench = make()
    handles = [bench.open(stream=stream)[0] for stream in (1, 2, 3)]

    def send(order: list[int], position: int) -> None:
        frames = [
            Frame(frame_id=1, handles=[handles[i]], positions=[position], inputs=Tensor(data=np.float32(1).tobytes()))
            for i in order
        ]
        bench.sessions.admit([FrameRequest(i, i + 1, frame, 1) for i, frame in zip(order, frames, strict=True)])

    send([0, 1, 2], 0)
    assert copied(bench) == {"read": 12, "join": 12, "state": 12, "store": 12}
    send([2, 0, 1], 1)  # the answers are sorted by stream; the states lie otherwise
    assert copied(bench) == {"read": 24, "join": 24, "state": 36, "pack": 12, "store": 24}
    assert [reply.to for reply in bench.sessions.take_replies()] == [0, 1, 2, 0, 1, 2]


def test_steps_by_session_id_are_read_once() -> None:
    bench = make()
    bench.sessions.open(["a", "b"], stream=1)
    data = np.float32(1).tobytes()
    bench.sessions.admit([StepRequest("me", id, 0, [], data, 1) for id in ("a", "b")])
    assert copied(bench) == {"read": 8, "join": 8, "state": 8, "store": 8}


@pytest.mark.parametrize("steps", [1, 16])
def test_rows_on_the_short_way_are_not_copied_again(steps: int) -> None:
    bench = make(run_budget_ms=20.0)
    handles = bench.open(64)
    size = 64 * steps * 4
    bench.sessions.admit([rows(handles, 0, steps)])
    assert copied(bench) == {"read": size, "state": 256, "store": size}
    # in two batches, and not in the order of their sessions
    mixed = shuffled(handles)
    bench.sessions.admit([rows(mixed[:30], steps, steps), rows(mixed[30:], steps, steps)])
    assert copied(bench) == {"read": 2 * size, "join": size, "state": 3 * 256, "store": 2 * size}
    assert not bench.sessions.core.counts.rows_passed


def test_rows_that_are_too_much_for_a_run_are_cut_without_a_copy() -> None:
    bench = make(run_budget_ms=10.0)
    handles = bench.open(8)
    bench.sessions.admit([rows(handles, 0, 150)])
    bench.sessions.admit([])
    assert copied(bench) == {"read": 4800, "state": 32, "store": 4800}


def test_rows_about_which_something_is_odd_are_picked_out() -> None:
    bench = make()
    first, second = bench.open(2)
    given = rows([first, second], 0, 1)
    given.handle = np.array([first, second + (1 << 24)], np.uint64)  # of another engine
    bench.sessions.admit([given])
    assert copied(bench) == {"read": 8, "pick": 8, "state": 4, "store": 4}


def test_whole_sequences_are_read_and_their_outputs_packed() -> None:
    bench = make()

    def ask(lengths: list[int], all_emissions: bool = True) -> None:
        data = np.ones(sum(lengths), np.float32).tobytes()
        bench.sessions.admit([PredictRequest("me", lengths, 0, [], data, all_emissions)])

    ask([5])
    assert copied(bench) == {"read": 20}
    ask([3, 3, 3])
    assert copied(bench) == {"read": 56, "pack": 36}
    ask([3, 3, 3], all_emissions=False)
    assert copied(bench) == {"read": 92, "pack": 48}
    assert [reply.outputs.ravel().tolist() for reply in bench.sessions.take_replies()] == [
        [1, 2, 3, 4, 5],
        [1, 2, 3] * 3,
        [3, 3, 3],
    ]


def test_sequences_that_came_one_a_call_are_answered_as_they_come_out() -> None:
    bench = make()
    given = rows([0, 0, 0], 0, 4)
    columns = {name: getattr(given, name) for name in Rows.__dataclass_fields__}
    columns |= {"frame": PredictMessage(), "call": np.arange(1, 4).astype(np.uint64)}
    bench.sessions.admit([PredictRows(**columns)])
    assert copied(bench) == {"read": 48}
    bench.sessions.admit([PredictRows(**columns, all_emissions=False)])
    assert copied(bench) == {"read": 96}
    assert [reply.outputs.ravel().tolist() for reply in bench.sessions.take_replies()] == [[1, 2, 3, 4] * 3, [4, 4, 4]]


def test_of_a_run_that_some_rows_end_with_the_others_go_on() -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime), run_budget_ms=0.22)  # 2 and 9 steps in two calls, then 10 and 5
    bench.send(bench.open(2), [0, 0], [[1.0] * 2, [1.0] * 24])
    found = copied(bench)
    assert runtime.runs == [(2, 2), (1, 7), (1, 10), (1, 5)]
    # out of the first run: both states and the outputs of the row that ends; the other's are kept, and its later ones
    assert found.pop("part") == 2 * 4 + 9 * 4
    assert found.pop("keep") == 24 * 4
    # inputs and states of the first run; states of the row that goes on, twice, and of both chunks
    assert found == {"read": 104, "gather": 44, "state": 24, "store": 104}


def test_rows_that_end_with_one_run_are_gathered_and_packed() -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime))
    bench.send(bench.open(2), [0, 0], [[1.0] * 2, [1.0] * 4])
    assert copied(bench) == {"read": 24, "gather": 24, "pack": 24, "state": 16, "store": 24}
    assert runtime.runs == [(2, 2), (1, 2)]


def test_a_lone_row_and_its_twin(tmp_path: Path) -> None:
    entry = write_counter(tmp_path)  # two numbers a step, an emission and a state
    manifest = read_manifest(entry)
    manifest.parity.min_rows = 2
    write_manifest(entry, manifest)
    bench = Bench(zoo.load(zoo.find(tmp_path)[0]))
    first, second = bench.open(2)

    def send(handles: list[int], position: int) -> None:
        data = np.ones(2 * len(handles), np.float32).tobytes()
        frame = Frame(handles=handles, positions=[position] * len(handles), inputs=Tensor(data=data))
        bench.sessions.admit([FrameRequest("me", 1, frame, 0)])

    send([first, second], 0)
    assert copied(bench) == {"read": 16, "state": 16, "store": 16}
    send([first], 1)
    assert copied(bench) == {"read": 24, "state": 24, "store": 24, "twin": 32}


def test_generations_feed_back_what_they_emit() -> None:
    bench = Bench(generator_model())
    for to in ("a", "b"):
        condition = np.zeros(1, np.float32).tobytes()
        bench.sessions.admit([GenerateRequest(to, b"", condition, Options(0.0, 0, 0.0, 1, 50), credits=3)])
    bench.run()
    runs = bench.sessions.core.counts.runs
    assert copied(bench) == {"gather": runs * 2 * 8, "state": runs * 2 * 4}


def test_rows_that_a_run_leaves_are_counted_each_time() -> None:
    bench = make(max_rows_per_run=4)
    handles = bench.open(10)
    bench.send(handles, [0] * 10, [[1.0]] * 10)
    bench.run()
    assert bench.sessions.core.counts.rows_passed == 6 + 2
    assert bench.sessions.core.counts.runs == 3


class Script(NoLane):
    """A bell whose waits are written down: each plays the next of the parts, the last one is real."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[Callable[[], Any]] = []
        self.given, self.is_over, self.rang = threading.Event(), threading.Event(), threading.Event()
        self.rows: list[Rows] = []
        self.num_waits = 0

    def ring(self) -> None:
        self.rang.set()

    def wait(self, timeout_s: float) -> None:
        self.num_waits += 1
        assert self.given.wait(10)
        if self.parts:
            self.parts.pop(0)()
            return
        self.rang.clear()
        self.is_over.set()
        self.rang.wait()

    def take(self) -> list[Rows]:
        taken, self.rows = self.rows, []
        return taken


@pytest.mark.parametrize("is_long", [False, True], ids=["own thread", "runner"])
def test_each_wait_of_the_engine_is_counted_and_those_in_vain(is_long: bool) -> None:
    runtime, lane = Gate(), Script()
    desk = Desk(runtime, SLOW if is_long else QUICK, lane)
    opened: list[Any] = []

    def ask() -> None:
        desk.engine.post(Call("open", lambda sessions: opened.extend(sessions.open([], count=1, stream=1))))

    def send() -> None:
        lane.rows.append(rows([opened[0].handle], 0, 1))

    def nothing() -> None:
        pass

    def go_on() -> None:
        lane.rang.clear()
        runtime.gate.set()
        assert lane.rang.wait(10)  # by the run's end

    if is_long:
        runtime.gate.clear()
    lane.parts = [ask, nothing, send, *([nothing, go_on] if is_long else [])]
    num_parts = len(lane.parts)
    lane.given.set()
    assert lane.is_over.wait(10)
    counters = desk.engine.counters()
    assert (counters.waits, counters.vain_waits) == (num_parts, 2 if is_long else 1)
    assert (counters.chunks, counters.runs) == (1, 1)
    assert counters.copied_bytes == {"read": 4, "state": 4, "store": 4}
    desk.engine.stop(5)
    assert desk.engine.counters().waits == lane.num_waits
