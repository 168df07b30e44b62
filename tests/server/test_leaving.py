"""Rows that leave a run are answered when they leave it; a run of few rows makes way for who comes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.reason_pb2 import Reason
from cellar_server.errors import CellarError
from cellar_server.scheduler.policy import Cost, calls
from cellar_server.scheduler.scheduler import LEAST_RUN_S
from cellar_server.sessions.messages import Call, PredictReply, PredictRequest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.bench import Bench, reason_of
from tests.fakes.runtime import CounterRuntime, counter_model
from tests.fakes.store import FakeStore
from tests.server.test_engine import Desk, HandLane
from tests.server.test_express import rows
from tests.server.test_overlap import Hooked

# a step of a row takes a millisecond, and a quarter of one
DEAR, LESS = Cost(1e-5, 1e-9, 1e-3), Cost(1e-5, 1e-9, 2.5e-4)
# no run is long enough for anything
CHEAP = Cost(1e-9, 1e-9, 1e-9)


def sequence(to: str, length: int) -> PredictRequest:
    return PredictRequest(to, [length], 0, [], np.ones(length, np.float32).tobytes(), True)


class Watched(Desk):
    """A desk whose runtime calls `before` with the number of each call, on the engine's thread."""

    def __init__(self, cost: Cost, lane: Any = None, fail_on: frozenset[int] = frozenset()) -> None:
        self.runtime = Hooked(fail_on)
        self.before: Callable[[int], None] = lambda number: None
        self.runtime.before = lambda number: self.before(number)
        super().__init__(self.runtime, cost, lane)

    @property
    def sequences(self) -> dict[str, Any]:
        """What was answered, by asker; an error as its reason."""
        said: dict[str, Any] = {}
        for reply in self.replies:
            if isinstance(reply, PredictReply):
                error = reply.error or (reply.errors[0][1] if reply.errors else None)
                said[reply.to] = reply.outputs.ravel().tolist() if error is None else error.reason
        return said

    def ask(self, *requests: PredictRequest) -> None:
        """Posts requests between two runs: the next one takes them all."""
        self.engine.post(Call("me", lambda sessions: [self.engine.post(request) for request in requests]))

    def wait_for(self, count: int) -> None:
        self.wait(lambda replies: len(self.sequences) == count)


@pytest.mark.parametrize(
    ("cost", "runs", "seen"),
    [
        (
            LESS,
            [(3, 2), (2, 1), (1, 7), (1, 7), (1, 3)],
            [set(), {"short"}, {"short", "middle"}, {"short", "middle"}, {"short", "middle"}],
        ),
        (CHEAP, [(3, 2), (2, 1), (1, 17)], [set(), set(), set()]),
    ],
)
def test_who_leaves_is_answered_before_the_next_call_where_that_is_long(
    desks: list[Desk], cost: Cost, runs: list[tuple[int, int]], seen: list[set[str]]
) -> None:
    desk, found = Watched(cost), []
    desks.append(desk)
    desk.before = lambda number: found.append(set(desk.sequences))
    desk.ask(sequence("long", 20), sequence("short", 2), sequence("middle", 3))
    desk.wait_for(3)
    assert desk.runtime.runs == runs
    assert found == seen
    assert desk.sequences == {"short": [1, 2], "middle": [1, 2, 3], "long": list(range(1, 21))}
    assert desk.engine.counters().runs == len(runs)


def test_nobody_is_told_early_where_more_wait_than_have_left() -> None:
    """One that would be spared half a millisecond, and two hundred who would all wait longer for that."""
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime), max_rows_per_run=2)
    bench.sessions.core.scheduler.cost = LESS
    for i, length in enumerate([1, 3, *[1] * 200]):
        bench.sessions.admit([sequence(f"{i}", length)])
    run = bench.sessions.runs.begin()
    assert run is not None
    assert not bench.sessions.runs.advance(run)
    assert runtime.runs == [(2, 1), (1, 2)]
    assert len(bench.sessions.take_replies()) == 2


@pytest.mark.parametrize("comes", ["to the inbox", "to the lane", ""])
def test_a_long_run_is_cut_for_who_comes_and_goes_on_where_nobody_does(desks: list[Desk], comes: str) -> None:
    lane = HandLane()
    desk = Watched(DEAR, lane)
    desks.append(desk)
    (handle,) = desk.open(1)

    def before(number: int) -> None:
        if number == 0 and comes == "to the inbox":
            desk.engine.post(sequence("new", 1))
        elif number == 0 and comes:
            lane.rows.append(rows([handle], 0, 1))

    desk.before = before
    desk.engine.post(sequence("long", 8))
    desk.wait(lambda replies: len(replies) == (2 if comes else 1))
    # a look every two milliseconds; what is left of the second run is no longer than that
    alone = [(1, 1)] * 8
    assert desk.runtime.runs == ([(1, 1), (2, 1), *[(1, 1)] * 6] if comes else alone)
    assert desk.sequences["long"] == list(range(1, 9))
    first = desk.replies[0]
    assert not comes or (first.to == "new" if comes == "to the inbox" else first.handles.tolist() == [handle])


def test_what_is_almost_over_is_not_cut(desks: list[Desk]) -> None:
    desk = Watched(DEAR)
    desks.append(desk)
    desk.before = lambda number: desk.engine.post(sequence("new", 1)) if number == 0 else None
    desk.engine.post(sequence("long", 2))
    desk.wait_for(2)
    assert [reply.to for reply in desk.replies] == ["long", "new"]
    assert desk.runtime.runs == [(1, 1)] * 3


def test_no_call_of_few_rows_is_longer_than_a_newcomer_may_wait() -> None:
    cost = Cost(1e-4, 1e-5, 1e-5)
    steps = np.array([400, 90, 90, 7])
    made = calls(steps, cost, LEAST_RUN_S)
    assert max(cost(n, end - begin) for n, begin, end in made) <= LEAST_RUN_S
    had = np.zeros(4, np.int64)
    for n, begin, end in made:
        assert (had[:n] == begin).all()
        had[:n] = end
    assert (had == steps).all()


def test_a_call_that_fails_leaves_what_was_answered(desks: list[Desk]) -> None:
    desk = Watched(DEAR, fail_on=frozenset({1}))
    desks.append(desk)
    desk.ask(sequence("long", 5), sequence("short", 1))
    desk.wait_for(2)
    assert desk.sequences == {"short": [1], "long": Reason.RUN_FAILED}
    desk.engine.post(sequence("later", 2))
    desk.wait_for(3)
    assert desk.sequences["later"] == [1, 2]


def test_a_fault_of_the_books_within_a_run_answers_everybody_once(desks: list[Desk]) -> None:
    desk = Watched(DEAR)
    desks.append(desk)

    def before(number: int) -> None:
        if number == 1:  # "short" has been answered
            desk.engine.post(sequence("new", 1))
            desk.engine._sessions.runs.lots = None  # type: ignore[assignment]

    desk.before = before
    desk.ask(sequence("long", 5), sequence("short", 1))
    desk.wait_for(3)
    assert not desk.engine.is_healthy
    assert desk.sequences == {"short": [1], "long": Reason.INTERNAL, "new": Reason.INTERNAL}
    assert len(desk.replies) == 4  # nobody is answered twice


def test_rows_seen_within_a_run_that_nothing_follows_are_refused(desks: list[Desk]) -> None:
    lane = HandLane()
    desk = Watched(DEAR, lane)
    desks.append(desk)
    (handle,) = desk.open(1)

    def before(number: int) -> None:
        if number == 0:
            lane.rows.append(rows([handle], 0, 1))
            desk.engine._stop_at = 0.0  # no time is left to drain

    desk.before = before
    desk.engine.post(sequence("long", 9))
    desk.wait(lambda replies: len(replies) == 2)
    assert desk.sequences["long"] == Reason.SHUTTING_DOWN
    assert [reply.error.reason for reply in desk.replies if reply.to != "long"] == [Reason.SHUTTING_DOWN]


def test_an_early_answer_says_what_is_durable() -> None:
    store = FakeStore()
    bench = Bench(counter_model(), store=store, durability="step")
    bench.sessions.core.scheduler.cost = DEAR
    *short, long = bench.open(4)
    bench.sessions.persist()
    bench.send([*short, long], [0] * 4, [[1.0], [1.0], [1.0], [1.0] * 5])
    run = bench.sessions.runs.begin()
    assert run is not None
    assert bench.sessions.runs.advance(run)
    bench.sessions.settle()
    bench.sessions.persist()
    (reply,) = bench.sessions.take_replies()
    assert (reply.handles, reply.positions, reply.durable) == (short, [1] * 3, [1] * 3)
    assert bench.sessions.core.table.position.max() == 1  # the other has not moved
    while bench.sessions.runs.advance(run):
        pass
    bench.sessions.settle()
    bench.sessions.persist()
    (reply,) = bench.sessions.take_replies()
    assert (reply.handles, reply.positions, reply.durable) == ([long], [5], [5])


@given(st.data())
def test_every_row_is_answered_once_and_with_its_sum(data: st.DataObject) -> None:
    """Chunks and sequences of any length, that come at any time, in runs that are cut or fail at any call."""
    runtime = CounterRuntime(frozenset(data.draw(st.sets(st.integers(0, 40), max_size=3))))
    bench = Bench(counter_model(runtime), max_queue_rows=512)
    bench.sessions.core.scheduler.cost = data.draw(st.sampled_from([DEAR, LESS, Cost(1e-5, 1e-5, 1e-5), CHEAP]))
    sessions = bench.sessions
    positions = dict.fromkeys(bench.open(6), 0)  # of what was answered
    waiting: set[int] = set()  # sessions with a chunk in work
    asked: dict[str, int] = {}
    answered: dict[str, PredictReply] = {}
    lengths = st.integers(1, 40)

    def admit() -> None:
        free = sorted(set(positions) - waiting)
        for handle in free[: data.draw(st.integers(0, len(free)))]:
            bench.send([handle], [positions[handle]], [[1.0] * data.draw(lengths)])
            waiting.add(handle)
        for _ in range(data.draw(st.integers(0, 3))):
            asked[f"{len(asked)}"] = data.draw(lengths)
            sessions.admit([sequence(f"{len(asked) - 1}", asked[f"{len(asked) - 1}"])])

    def look() -> None:
        sessions.settle()
        for (handle, start), emissions in bench.take().items():
            assert start == positions[handle]
            waiting.remove(handle)
            if isinstance(emissions, CellarError):
                assert reason_of(emissions) == "RUN_FAILED"
                continue
            assert emissions.tolist() == [start + i + 1.0 for i in range(len(emissions))]
            positions[handle] += len(emissions)
        while bench.replies:
            reply = bench.replies.popleft()
            assert reply.to not in answered
            answered[reply.to] = reply

    for _ in range(data.draw(st.integers(1, 4))):
        admit()
        while sessions.has_ready and data.draw(st.booleans()):
            run = sessions.runs.begin()
            assert run is not None
            if run.under_way is None:
                sessions.runs.finish(run, sessions.runs.compute(run))
            while run.under_way is not None and sessions.runs.advance(run):
                look()
                if data.draw(st.booleans()):
                    sessions.runs.cut(run)
                    break
            look()
    bench.run()
    look()
    assert not waiting
    assert answered.keys() == asked.keys()
    for to, reply in answered.items():
        if not reply.errors:
            assert reply.outputs.ravel().tolist() == [i + 1.0 for i in range(asked[to])]
    table, counts = sessions.core.table, sessions.core.counts
    assert table.position[:6].tolist() == table.accepted[:6].tolist() == list(positions.values())
    assert table.state[:6, 0].tolist() == [float(p) for p in positions.values()]
    failed = [size for number, size in enumerate(runtime.runs) if number in runtime.fail_on]
    assert counts.steps == sum(n * q for n, q in runtime.runs) - sum(n * q for n, q in failed)
    assert counts.runs == len(runtime.runs) - len(failed)
    assert (sessions.core.work.num_used, len(sessions.core.work.lots)) == (0, 0)
