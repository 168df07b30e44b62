"""Long runs of rows on the engine's threads: each begins before the replies of the one before are made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.reason_pb2 import Reason
from cellar_server.engine.inbox import NoLane
from cellar_server.scheduler.policy import Cost
from cellar_server.sessions.messages import Call, CallReply, Rows, RowsRefused, RowsReply
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.runtime import CounterRuntime
from tests.server.test_engine import Desk
from tests.server.test_express import rows

# long whatever it holds, and two of them are too much for one
LONG = Cost(6e-3, 1e-9, 1e-9)
PER_ROW = Cost(1e-9, 1e-9, 2e-3)


class Lane(NoLane):
    """Rows put in from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: queue.SimpleQueue[Rows] = queue.SimpleQueue()

    def put(self, rows: Rows) -> None:
        self._rows.put(rows)
        self.ring()

    def take(self) -> list[Rows]:
        taken = []
        while not self._rows.empty():
            taken.append(self._rows.get())
        return taken


class Hooked(CounterRuntime):
    """A counter that tells of each run, by its number, before it computes it."""

    def __init__(self, fail_on: frozenset[int] = frozenset()) -> None:
        super().__init__(fail_on)
        self.before: Callable[[int], None] = lambda number: None

    def step(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.before(len(self.runs))
        return super().step(x, state)


class Told(Desk):
    """A desk that tells of each reply to rows before it takes it."""

    def __init__(self, runtime: CounterRuntime, cost: Cost, lane: Lane, **config: Any) -> None:
        self.before: Callable[[Any], None] = lambda reply: None
        super().__init__(runtime, cost, lane, **config)

    def _deliver(self, replies: list[Any]) -> None:
        for reply in replies:
            if not isinstance(reply, CallReply):
                self.before(reply)
        super()._deliver(replies)


@pytest.mark.parametrize("are_together", [False, True], ids=["one batch after the other", "halves of one batch"])
def test_a_run_begins_before_the_replies_of_the_one_before_are_made(are_together: bool) -> None:
    runtime, lane = Hooked(), Lane()
    desk = Told(runtime, PER_ROW if are_together else LONG, lane)
    handles = desk.open(8)
    second_begun, first_told = threading.Event(), threading.Event()

    def before_run(number: int) -> None:
        if number == 0 and not are_together:
            lane.put(rows(handles[4:], 0, 1))
        elif number == 1:
            second_begun.set()
            assert first_told.wait(10)  # it is computed while they are

    def before_reply(reply: Any) -> None:
        if not first_told.is_set():
            assert second_begun.wait(10)
            assert reply.handles.tolist() == handles[:4]
            first_told.set()

    runtime.before, desk.before = before_run, before_reply
    lane.put(rows(handles if are_together else handles[:4], 0, 1))
    desk.wait(lambda replies: len(replies) == 2)
    assert runtime.runs == [(4, 1), (4, 1)]
    assert [reply.handles.tolist() for reply in desk.replies] == [handles[:4], handles[4:]]
    assert all((reply.outputs == 1).all() for reply in desk.replies)
    desk.engine.stop(1)


@dataclass(frozen=True)
class Heard(Cost):
    """Tells when the engine makes a run, on the engine's thread."""

    told: list[str] = field(default_factory=list)

    def of_ragged(self, steps: np.ndarray) -> float:
        self.told.append("run")
        return super().of_ragged(steps)


class Listening(Lane):
    """Tells when the engine takes rows."""

    def __init__(self, told: list[str]) -> None:
        super().__init__()
        self.told, self.are_taken = told, threading.Event()

    def take(self) -> list[Rows]:
        taken = super().take()
        self.told += [f"{len(each.call)} rows" for each in taken]
        if taken and len(self.told) > 1:
            self.are_taken.set()
        return taken


@pytest.mark.parametrize("are_many", [False, True], ids=["few callers", "many callers"])
def test_rows_that_cannot_be_in_the_next_run_are_taken_beside_it(are_many: bool) -> None:
    cost = Heard(1e-9, 1e-9, 2e-3)
    runtime, lane = Hooked(), Listening(cost.told)
    desk = Told(runtime, cost, lane)
    handles = desk.open(47)
    first, later = rows(handles[:40], 0, 1), rows(handles[40:], 0, 1)
    first.caller = np.arange(40) if are_many else np.zeros(40, np.int64)
    later.caller = np.arange(40, 47)

    def before_run(number: int) -> None:
        if number == 0:
            lane.put(later)
        elif number == 1:
            assert lane.are_taken.wait(10)

    runtime.before = before_run
    lane.put(first)
    desk.wait(lambda replies: sum(len(reply.handles) for reply in replies) == 47)
    desk.engine.stop(1)
    assert cost.told[:4] == ["40 rows", "run", *(["run", "7 rows"] if are_many else ["7 rows", "run"])]
    answered = [int(handle) for reply in desk.replies for handle in reply.handles]
    assert sorted(answered) == sorted(handles)
    assert all((reply.outputs == 1).all() for reply in desk.replies)
    # a newcomer goes before the rest of one caller who has much under way, and behind many callers who wait
    assert set(answered[-7:]) == set(handles[40:]) if are_many else set(answered[-7:]) < set(handles[:40])


def test_a_fault_beside_a_run_answers_its_rows_and_shows() -> None:
    runtime, lane = Hooked(), Lane()
    desk = Told(runtime, LONG, lane)
    first, second = desk.open(2)
    told: list[Any] = []

    def before_run(number: int) -> None:
        if number == 0:
            lane.put(rows([second], 0, 1))

    def before_reply(reply: Any) -> None:
        told.append(reply)
        if len(told) == 1:
            raise OSError("a secret of the transport")

    runtime.before, desk.before = before_run, before_reply
    lane.put(rows([first], 0, 1))
    desk.wait(lambda replies: len(replies) == 1)
    assert not desk.engine.is_healthy
    (reply,) = desk.replies
    assert isinstance(reply, RowsRefused)
    assert (reply.handles.tolist(), reply.error.reason) == ([second], Reason.INTERNAL)
    assert "secret" not in reply.error.message
    desk.engine.stop(1)


def test_whoever_asks_or_stops_between_two_long_runs_is_served() -> None:
    runtime, lane = Hooked(), Lane()
    desk = Told(runtime, LONG, lane)
    (handle,) = desk.open(1)
    stopping: list[threading.Thread] = []

    def before_run(number: int) -> None:
        # each run finds the next rows there already
        lane.put(rows([handle], number + 1, 1))
        if number == 2:
            desk.engine.post(Call("asked", lambda sessions: sessions.core.table.num_open))
        elif number == 5:
            stopping.append(threading.Thread(target=desk.engine.stop, args=(5,)))
            stopping[0].start()
            runtime.before = lambda number: None

    runtime.before = before_run
    lane.put(rows([handle], 0, 1))
    desk.wait(lambda replies: any(isinstance(reply, CallReply) for reply in replies))
    desk.wait(lambda replies: sum(isinstance(reply, RowsReply) for reply in replies) >= 6)
    stopping[0].join(10)
    assert not stopping[0].is_alive()
    answers = [reply for reply in desk.replies if isinstance(reply, RowsReply)]
    assert [reply.outputs.item() for reply in answers] == [float(i + 1) for i in range(len(answers))]
    (asked,) = [reply for reply in desk.replies if isinstance(reply, CallReply)]
    assert (asked.to, asked.value) == ("asked", 1)


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=20),
    st.frozensets(st.integers(0, 30), max_size=5),
    st.frozensets(st.integers(0, 40), max_size=6),
    st.sampled_from([LONG, PER_ROW, Cost(1e-9, 1e-9, 4e-4), Cost(1e-9, 2e-4, 1e-9)]),
    st.booleans(),
)
def test_whatever_follows_whatever_every_chunk_is_taken_in_once_and_in_order(
    chunks: list[list[int]], fail_on: frozenset[int], again: frozenset[int], cost: Cost, are_many: bool
) -> None:
    """Sessions that send the next chunk when one is answered, a failed one again, and some answered ones again."""
    runtime, lane = Hooked(fail_on), Lane()
    desk = Told(runtime, cost, lane)
    handles = desk.open(len(chunks))
    number = {handle: i for i, handle in enumerate(handles)}
    turn = [0] * len(chunks)  # of each session: chunks answered
    repeated: list[int] = []  # replies to what was sent again
    left, over = [sum(map(len, chunks))], threading.Event()
    sent_again = [0]

    def send(i: int, k: int) -> None:
        made = rows([handles[i]], sum(chunks[i][:k]), chunks[i][k])
        made.caller = np.array([i]) if are_many else None
        lane.put(made)

    def before_reply(reply: Any) -> None:
        if isinstance(reply, RowsRefused):
            assert reply.error.reason == Reason.RUN_FAILED
            for handle in reply.handles.tolist():
                send(number[handle], turn[number[handle]])
            return
        ends = np.cumsum(reply.lengths)
        for handle, position, start, end in zip(reply.handles, reply.positions, reply.starts, ends, strict=True):
            i = number[int(handle)]
            got = reply.outputs[end - (int(position) - int(start)) : end, 0]
            assert got.tolist() == list(range(int(start) + 1, int(position) + 1))  # the sum of so many ones
            if int(position) <= sum(chunks[i][: turn[i]]):
                repeated.append(i)
            else:
                assert int(start) == sum(chunks[i][: turn[i]])
                turn[i] += 1
                left[0] -= 1
                if left[0] in again:
                    sent_again[0] += 1
                    send(i, turn[i] - 1)
                if turn[i] < len(chunks[i]):
                    send(i, turn[i])
        if not left[0] and len(repeated) == sent_again[0]:
            over.set()

    def before(reply: Any) -> None:
        try:
            before_reply(reply)
        except BaseException as fault:
            faults.append(fault)
            over.set()
            raise

    faults: list[BaseException] = []
    desk.before = before
    for i in range(len(chunks)):
        send(i, 0)
    assert over.wait(30), (left, repeated, sent_again)
    assert not faults
    desk.engine.stop(5)
    assert desk.engine.is_healthy
    counts = desk.engine.counts()
    assert counts.chunks == sum(map(len, chunks))
    assert counts.chunks_replayed == sent_again[0]
    went_well = [shape for n, shape in enumerate(runtime.runs) if n not in fail_on]
    assert counts.runs == len(went_well)
    assert (counts.steps, counts.padded_steps) == (sum(n * q for n, q in went_well), 0)
