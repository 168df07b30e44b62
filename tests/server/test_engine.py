"""The engine's thread: runs on it and beside it, a fault of its own, and its end."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server.config import Config
from cellar_server.engine import Engine
from cellar_server.engine.inbox import NoLane
from cellar_server.scheduler.policy import Cost
from cellar_server.sessions.directory import Directory
from cellar_server.sessions.messages import AnswerReply, Call, CallReply, FrameRequest, PredictReply, PredictRequest

from tests.fakes.runtime import CounterRuntime, counter_model
from tests.server.test_express import rows

QUICK = Cost(1e-6, 1e-6, 1e-6)
# every run is long enough for the runner
SLOW = Cost(1.0, 1.0, 1.0)


class Gate(CounterRuntime):
    """A counter that computes only while its gate is open, and says that it was called."""

    def __init__(self, fail_on: frozenset[int] = frozenset()) -> None:
        super().__init__(fail_on)
        self.gate = threading.Event()
        self.gate.set()
        self.called = threading.Event()

    def step(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.called.set()
        assert self.gate.wait(10)
        return super().step(x, state)


class Misshapen(CounterRuntime):
    """Its states are too wide: the engine's own books fail, not the run."""

    def step(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().step(x, state)[0], np.zeros((len(x), 7), np.float32)


class Desk:
    """An engine and what it delivered."""

    def __init__(self, runtime: CounterRuntime, cost: Cost, lane: Any = None, **config: Any) -> None:
        given = Config(**{"max_sessions": 256, "max_queue_rows": 512, **config})
        self.engine = Engine(counter_model(runtime), given, Directory(), cost=cost)
        self.replies: list[Any] = []
        self._changed = threading.Condition()
        self.engine.start(self._deliver, lane)

    def _deliver(self, replies: list[Any]) -> None:
        with self._changed:
            self.replies += replies
            self._changed.notify_all()

    def wait(self, holds: Any, timeout_s: float = 10) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: holds(self.replies), timeout_s), self.replies

    def open(self, count: int) -> list[int]:
        self.engine.post(Call("open", lambda sessions: sessions.open([], count=count, stream=1)))
        self.wait(lambda replies: any(isinstance(r, CallReply) for r in replies))
        (reply,) = [r for r in self.replies if isinstance(r, CallReply)]
        self.replies.remove(reply)
        assert reply.error is None
        return [opened.handle for opened in reply.value]

    def send(self, frame_id: int, handles: list[int], start: int, value: float, length: int = 1) -> None:
        n = len(handles)
        data = np.full(n * length, value, np.float32).tobytes()
        frame = Frame(
            frame_id=frame_id, handles=handles, positions=[start] * n, lengths=[length], inputs=Tensor(data=data)
        )
        self.engine.post(FrameRequest("me", 1, frame, frame_id))

    def answers(self) -> dict[tuple[int, int], float]:
        """Last emission by (handle, start); none may be an error."""
        found: dict[tuple[int, int], float] = {}
        for reply in self.replies:
            assert isinstance(reply, AnswerReply)
            assert not reply.errors
            ends = np.cumsum(reply.lengths)
            for handle, start, end in zip(reply.handles, reply.starts, ends, strict=True):
                assert (handle, start) not in found
                found[handle, start] = float(reply.outputs[end - 1, 0])
        return found


@pytest.fixture(params=[QUICK, SLOW], ids=["own thread", "runner"])
def cost(request: pytest.FixtureRequest) -> Cost:
    return request.param


def test_sixty_sessions_and_twenty_steps_come_out_as_sums(desks: list[Desk], cost: Cost) -> None:
    desk = Desk(CounterRuntime(), cost)
    desks.append(desk)
    handles = desk.open(60)
    # odd steps in one large frame, which is read ahead; even ones in small ones
    for step in range(20):
        if step % 2:
            desk.send(1000 + step, handles, step, 1.0)
        else:
            for i, handle in enumerate(handles):
                desk.send(step * 100 + i, [handle], step, 1.0)
        desk.wait(lambda replies, n=60 * (step + 1): sum(len(r.handles) for r in replies) == n)
    assert desk.answers() == {(handle, step): step + 1.0 for handle in handles for step in range(20)}
    counters = desk.engine.counters()
    assert (counters.steps, counters.padded_steps, counters.chunks) == (1200, 0, 1200)


def test_frames_that_come_during_a_run_are_taken_up_beside_it_in_their_order(desks: list[Desk]) -> None:
    runtime = Gate()
    desk = Desk(runtime, SLOW)
    desks.append(desk)
    handles = desk.open(40)
    runtime.gate.clear()
    desk.send(1, handles, 0, 1.0)
    assert runtime.called.wait(10)
    desk.send(2, handles, 1, 10.0)  # large: admitted while the run is under way
    desk.send(3, handles[:1], 2, 100.0)  # small: waits for its end
    desk.send(4, handles, 2, 100.0)  # large, behind a small one: keeps its place
    deadline = time.monotonic() + 10
    while desk.engine.queue_rows < 80:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert not desk.replies
    runtime.gate.set()
    desk.wait(lambda replies: sum(len(r.handles) for r in replies) == 40 + 40 + 1 + 40)
    first = [r for r in desk.replies if 100 in r.starts or 2 in r.starts]
    assert first
    seen = {(h, s, r.frame_ids[0]) for r in desk.replies for h, s in zip(r.handles, r.starts, strict=True)}
    # the first session's third chunk was sent twice with one content: both are answered, it ran once
    assert {(handles[0], 2, 3), (handles[0], 2, 4)} <= seen
    counters = desk.engine.counters()
    assert (counters.steps, counters.chunks_replayed) == (120, 1)
    assert all(reply.outputs[-1, 0] == 111 for reply in first)


def test_a_failed_run_fails_its_rows_and_the_next_runs_go_on(desks: list[Desk], cost: Cost) -> None:
    desk = Desk(CounterRuntime(frozenset([1])), cost)
    desks.append(desk)
    handles = desk.open(3)
    for step, start in enumerate((0, 1, 1)):
        desk.send(step, handles, start, 1.0)
        desk.wait(lambda replies, n=3 * (step + 1): sum(len(r.handles) for r in replies) == n)
    errors = [error for reply in desk.replies for _, error in reply.errors]
    assert [error.reason for error in errors] == [Reason.RUN_FAILED] * 3
    assert "secret" not in errors[0].message
    assert desk.replies[-1].outputs.ravel().tolist() == [2, 2, 2]


def test_a_fault_of_the_engine_answers_everything_and_shows(desks: list[Desk], cost: Cost) -> None:
    desk = Desk(Misshapen(), cost)
    desks.append(desk)
    handles = desk.open(2)
    desk.send(1, handles[:1], 0, 1.0)
    desk.engine.post(PredictRequest("he", [1], 0, [], np.ones(1, np.float32).tobytes(), True))
    desk.wait(lambda replies: len(replies) >= 2)
    assert not desk.engine.is_healthy
    by_asker = {reply.to: reply for reply in desk.replies}
    predicted = by_asker["he"]
    assert isinstance(predicted, PredictReply)
    error = predicted.error or predicted.errors[0][1]
    assert error.reason == Reason.INTERNAL
    assert error.error_id
    desk.send(2, handles[1:], 0, 1.0)
    desk.wait(lambda replies: len(replies) >= 3)
    assert desk.replies[-1].error.reason == Reason.INTERNAL


def test_a_fault_while_requests_are_taken_in_answers_those_too(desks: list[Desk], cost: Cost) -> None:
    runtime = Gate()
    desk = Desk(runtime, QUICK)
    desks.append(desk)
    handles = desk.open(2)
    runtime.gate.clear()
    desk.send(1, handles[:1], 0, 1.0)
    assert runtime.called.wait(10)

    def fail(*_: Any) -> None:
        raise RuntimeError("a fault of the books")

    desk.engine._sessions.predicts.admit = fail  # type: ignore[method-assign]
    desk.send(2, handles[1:], 0, 1.0)
    for asker in ("he", "she"):
        desk.engine.post(PredictRequest(asker, [1], 0, [], np.ones(1, np.float32).tobytes(), True))
    desk.engine.post(Call("they", lambda sessions: None))
    runtime.gate.set()
    desk.wait(lambda replies: {"he", "she", "they"} <= {reply.to for reply in replies} and len(replies) >= 5)
    assert not desk.engine.is_healthy
    reasons = [reply.error.reason for reply in desk.replies if reply.to in ("he", "she", "they")]
    assert reasons == [Reason.INTERNAL] * 3
    assert len(desk.replies) == 5  # nobody is answered twice


def test_stopping_finishes_what_was_accepted(desks: list[Desk], cost: Cost) -> None:
    runtime = Gate()
    desk = Desk(runtime, cost)
    desks.append(desk)
    handles = desk.open(2)
    runtime.gate.clear()
    desk.send(1, handles, 0, 1.0, length=5)
    assert runtime.called.wait(10)
    stopping = threading.Thread(target=desk.engine.stop, args=(5,))
    stopping.start()
    runtime.gate.set()
    stopping.join(10)
    assert not stopping.is_alive()
    assert desk.answers() == {(handle, 0): 5.0 for handle in handles}
    desk.send(2, handles, 5, 1.0)
    assert desk.replies[-1].error.reason == Reason.SHUTTING_DOWN


def test_stopping_with_no_time_left_refuses_what_waits(desks: list[Desk]) -> None:
    runtime = Gate()
    desk = Desk(runtime, QUICK, run_budget_ms=0.001)
    desks.append(desk)
    (handle,) = desk.open(1)
    runtime.gate.clear()
    desk.send(1, [handle], 0, 1.0, length=1000)
    assert runtime.called.wait(10)
    stopping = threading.Thread(target=desk.engine.stop, args=(0,))
    stopping.start()
    time.sleep(0.05)
    runtime.gate.set()
    stopping.join(10)
    (reply,) = desk.replies
    assert [error.reason for _, error in reply.errors] == [Reason.SHUTTING_DOWN]


class HandLane(NoLane):
    """Rows put in by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Any] = []
        self.is_closed = False

    def take(self) -> list[Any]:
        taken, self.rows = self.rows, []
        return taken

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("busy", [False, True])
def test_rows_of_the_lane_go_before_what_was_posted_behind_them(busy: bool, cost: Cost, desks: list[Desk]) -> None:
    runtime, lane = Gate(), HandLane()
    desk = Desk(runtime, cost, lane)
    desks.append(desk)
    (handle, other) = desk.open(2)
    if busy:  # they come while a run is under way
        runtime.gate.clear()
        desk.send(1, [other], 0, 1.0)
        assert runtime.called.wait(10)
    lane.rows.append(rows([handle], 0, 1))
    desk.send(2, [handle], 1, 1.0)  # would be a gap if it went first
    runtime.gate.set()
    lane.ring()
    desk.wait(lambda replies: sum(len(reply.handles) for reply in replies) == (3 if busy else 2))
    assert desk.answers()[handle, 1] == 2.0
    desk.engine.stop(1)
    assert lane.is_closed
