"""Sessions end at their own limits, whatever else is open and however busy the engine is. The clock moves by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.state_pb2 import SessionState
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server.config import Config
from cellar_server.engine import Engine
from cellar_server.engine.inbox import NoLane
from cellar_server.errors import CellarError
from cellar_server.sampling.sampler import Options
from cellar_server.scheduler.policy import Cost
from cellar_server.sessions.directory import Directory
from cellar_server.sessions.ends import REST_S
from cellar_server.sessions.messages import (
    Call,
    CallReply,
    FrameRequest,
    GenerateReply,
    GenerateRequest,
    StepRequest,
    StreamClosed,
)
from cellar_server.store.base import Store
from cellar_server.zoo import Model
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.fakes.bench import Clock, reason_of
from tests.fakes.runtime import CounterRuntime, counter_model, generator_model
from tests.fakes.store import FakeStore

QUICK = Cost(1e-6, 1e-6, 1e-6)
# every run is long enough for the runner
SLOW = Cost(1.0, 1.0, 1.0)


class Sleeper(NoLane):
    """A bell whose waits take no time of ours: the clock goes to their ends, but no further than the test lets it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._until = clock.now
        self._changed = threading.Condition()
        self._is_rung = self._is_asleep = False
        self.num_wakes = 0

    def ring(self) -> None:
        with self._changed:
            self._is_rung = True
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> None:
        ends = float("inf") if timeout_s < 0 else self._clock.now + timeout_s
        with self._changed:
            while not self._is_rung:
                if ends <= self._until:
                    self._clock.now = max(self._clock.now, ends)
                    self.num_wakes += 1
                    return
                self._clock.now = max(self._clock.now, self._until)
                self._is_asleep = True
                self._changed.notify_all()
                self._changed.wait()
            self._is_rung = self._is_asleep = False

    def sleep(self, seconds: float) -> None:
        """Lets so much time pass, with all that the engine does in it."""
        with self._changed:
            self._until = max(self._until, self._clock.now) + seconds
            self._is_asleep = False
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._is_asleep, 10)


class Hall:
    """An engine on a clock of its own."""

    def __init__(
        self, model: Model | None = None, cost: Cost = QUICK, *, store: Store | None = None, **config: Any
    ) -> None:
        self.clock = Clock()
        self.lane = Sleeper(self.clock)
        stored = {} if store is None else {"store": "sqlite:///fake"}
        given = Config(**{"max_sessions": 64, "max_queue_rows": 512, **stored, **config})
        self.engine = Engine(model or counter_model(), given, Directory(), clock=self.clock, cost=cost, store=store)
        self._replies: list[Any] = []
        self._changed = threading.Condition()
        self.engine.start(self._deliver, self.lane)

    def _deliver(self, replies: list[Any]) -> None:
        with self._changed:
            self._replies += replies
            self._changed.notify_all()

    def reply(self) -> Any:
        """The next reply."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._replies, 10)
            return self._replies.pop(0)

    def call(self, function: Callable[[Any], Any]) -> Any:
        """What a function of the sessions gives. CellarError."""
        self.engine.post(Call("caller", function))
        reply = self.reply()
        assert isinstance(reply, CallReply)
        if reply.error is not None:
            raise reply.error
        return reply.value

    def open(self, id: str, **options: Any) -> int:
        """A new session's handle."""
        (opened,) = self.call(lambda sessions: sessions.open([id], **options))
        return opened.handle

    def why_gone(self, id: str) -> str:
        """See above, of now."""
        return self.call(lambda sessions: why_gone(sessions, id))

    def post_steps(self, handle: int, position: int, steps: int, stream: int = 1) -> None:
        inputs = Tensor(data=np.ones(steps, np.float32).tobytes())
        frame = Frame(frame_id=1, handles=[handle], positions=[position], lengths=[steps], inputs=inputs)
        self.engine.post(FrameRequest("streamer", stream, frame, 1))

    def sleep(self, seconds: float) -> None:
        self.lane.sleep(seconds)


def why_gone(sessions: Any, id: str) -> str:
    """The reason that a session's id answers; empty while it is open."""
    try:
        sessions.get(id)
    except CellarError as error:
        return reason_of(error)
    return ""


@pytest.fixture
def halls() -> Iterator[list[Hall]]:
    made: list[Hall] = []
    yield made
    for hall in made:
        hall.engine.stop(1)


@pytest.fixture
def hall(halls: list[Hall]) -> Hall:
    halls.append(Hall())
    return halls[0]


@pytest.mark.parametrize("limit", ["max_idle_s", "max_age_s"])
@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("has_ended", [False, True])
@pytest.mark.parametrize("lapse_s", [0.0, 100.0])
def test_a_session_ends_at_its_own_limit(hall: Hall, limit: str, others: int, has_ended: bool, lapse_s: float) -> None:
    for number in range(others):
        hall.open(f"far{number}", max_idle_s=1e6)
    if has_ended:
        hall.open("first", max_idle_s=1.0)
        hall.sleep(1.1)
        assert hall.why_gone("first") == "SESSION_EXPIRED"
    hall.sleep(lapse_s)
    hall.open("near", **{limit: 2.0})
    hall.sleep(1.9)
    assert hall.engine.num_sessions == others + 1
    hall.sleep(0.2)
    assert hall.engine.num_sessions == others
    assert hall.why_gone("near") == "SESSION_EXPIRED"


def test_a_fork_an_import_and_an_opening_by_a_chunk_end_at_their_own_limits(halls: list[Hall]) -> None:
    hall = Hall(max_idle_s=50.0)
    halls.append(hall)
    hall.open("far", max_idle_s=1e6)
    hall.sleep(10)
    hall.call(lambda sessions: sessions.fork("far", "fork", max_idle_s=3.0))
    hall.sleep(2.9)
    assert not hall.why_gone("fork")
    hall.sleep(0.2)
    assert hall.why_gone("fork") == "SESSION_EXPIRED"
    hall.open("old", max_idle_s=1e6, max_age_s=20.0)
    hall.sleep(15)
    state = hall.call(lambda sessions: sessions.export("old"))
    hall.call(lambda sessions: sessions.close("old"))
    hall.sleep(100)
    hall.call(lambda sessions: sessions.import_state(state, "again"))  # its age goes on: 5 s are left
    hall.sleep(4.9)
    assert not hall.why_gone("again")
    hall.sleep(0.2)
    assert hall.why_gone("again") == "SESSION_EXPIRED"
    hall.engine.post(StepRequest("chunk", "chunk", 0, [], np.ones(1, np.float32).tobytes(), 1, opens=True))
    hall.reply()
    hall.sleep(49.9)
    assert not hall.why_gone("chunk")
    hall.sleep(0.2)
    assert hall.why_gone("chunk") == "SESSION_EXPIRED"


def test_without_a_limit_to_come_the_engine_sleeps(hall: Hall) -> None:
    hall.open("far", max_idle_s=1e6)
    hall.sleep(10)
    before = hall.lane.num_wakes
    hall.sleep(1e5)
    assert hall.lane.num_wakes == before
    hall.open("near", max_idle_s=100.0)
    hall.sleep(1e5)
    assert hall.why_gone("near") == "SESSION_EXPIRED"
    assert hall.lane.num_wakes - before <= 3


class Slow(CounterRuntime):
    """Each run takes a second; how many sessions were open at each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.hall: Hall | None = None
        self.open: list[int] = []

    def step(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self.hall is not None
        self.hall.clock.now += 1.0
        self.open.append(self.hall.engine.num_sessions)
        return super().step(x, state)


@pytest.mark.parametrize("cost", [QUICK, SLOW], ids=["own thread", "runner"])
def test_sessions_end_while_runs_follow_one_another(halls: list[Hall], cost: Cost) -> None:
    runtime = Slow()
    # one step a run
    hall = Hall(counter_model(runtime), cost, run_budget_ms=1e-3)
    runtime.hall = hall
    halls.append(hall)
    busy = hall.open("busy", stream=1, max_idle_s=1e6, max_age_s=30.0)
    hall.open("near", max_idle_s=5.0)
    hall.post_steps(busy, 0, 50)
    reply = hall.reply()
    # "near" has gone after five of the runs, give or take one; the busy one after thirty, with what it had begun
    assert reason_of(dict(reply.errors)[0]) == "SESSION_EXPIRED"
    assert runtime.open.index(1) in (5, 6, 7)
    assert 29 <= len(runtime.open) <= 32
    assert hall.engine.num_sessions == 0


def test_a_session_is_handed_over_while_runs_follow_one_another(halls: list[Hall]) -> None:
    runtime = Slow()
    hall = Hall(counter_model(runtime), SLOW, store=FakeStore(), durability="interval", run_budget_ms=1e-3)
    runtime.hall = hall
    halls.append(hall)
    busy = hall.open("busy", stream=1)
    hall.open("wanted")
    hall.post_steps(busy, 0, 30)
    hall.engine.post(Call("caller", lambda sessions: sessions.hand_over("wanted")))
    replies = [hall.reply(), hall.reply()]
    assert not replies[-1].errors
    assert hall.engine.num_sessions == 1
    assert runtime.open.index(1) <= 3


def test_an_absolute_limit_ends_a_generation_that_nobody_reads(halls: list[Hall]) -> None:
    hall = Hall(generator_model(), max_age_s=10.0)
    halls.append(hall)
    zero = np.zeros(1, np.float32).tobytes()
    hall.engine.post(GenerateRequest("reader", b"", zero, Options(0.0, 0, 1.0, 1, 50), "tune", credits=1))
    assert isinstance(hall.reply(), GenerateReply)
    hall.sleep(9.9)
    assert not hall.why_gone("tune")
    hall.sleep(0.2)
    assert reason_of(hall.reply().error) == "SESSION_EXPIRED"
    assert hall.why_gone("tune") == "SESSION_EXPIRED"


@dataclass
class Known:
    """What the model knows of a session."""

    opened: float
    last_use: float
    max_idle: float
    max_age: float
    grace: float | None = None
    stream: int = 0
    handle: int = 0
    position: int = 0
    leaves: float = float("inf")

    @property
    def end(self) -> float:
        old = self.opened + self.max_age if self.max_age else float("inf")
        return min(self.last_use + self.max_idle, old, self.leaves)


IDLES = st.sampled_from([0.0, 0.25, 3.0, 50.0, 1e6])
AGES = st.sampled_from([0.0, 0.0, 0.5, 10.0, 1e5])
GRACES = st.sampled_from([None, None, 0.0, 2.0])


class Ends(RuleBasedStateMachine):
    """Random lives of sessions beside a list of when each of them ends."""

    def __init__(self) -> None:
        super().__init__()
        self.hall = Hall(max_idle_s=900.0)
        self.known: dict[str, Known] = {}
        self.states: list[tuple[SessionState, float | None, float]] = []
        self.number = 0

    def teardown(self) -> None:
        self.hall.engine.stop(1)

    @property
    def now(self) -> float:
        return self.hall.clock.now

    def _new_id(self) -> str:
        self.number += 1
        return f"s{self.number}"

    @property
    def alive(self) -> list[str]:
        """Those that nothing can have ended since they were looked at."""
        return sorted(id for id, session in self.known.items() if session.end > self.now)

    def _ids(self) -> st.SearchStrategy[str]:
        return st.sampled_from(self.alive)

    @precondition(lambda self: len(self.known) < 32)
    @rule(max_idle=IDLES, max_age=AGES, grace=GRACES, stream=st.integers(0, 2))
    def open(self, max_idle: float, max_age: float, grace: float | None, stream: int) -> None:
        id = self._new_id()
        limits = {"max_idle_s": max_idle, "max_age_s": max_age, "grace_s": grace}
        handle = self.hall.open(id, stream=stream, **limits)
        self.known[id] = Known(self.now, self.now, max_idle or 900.0, max_age, grace, stream, handle)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), by_id=st.booleans())
    def step(self, data: st.DataObject, by_id: bool) -> None:
        id = data.draw(self._ids())
        session = self.known[id]
        if by_id or not session.stream:
            self.hall.engine.post(StepRequest("step", id, 0, [], np.ones(1, np.float32).tobytes(), 1))
            session.stream, session.leaves = 0, float("inf")
        else:
            self.hall.post_steps(session.handle, session.position, 1, session.stream)
        assert not self.hall.reply().errors
        session.position += 1
        session.last_use = self.now

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), stream=st.integers(0, 2))
    def take_up(self, data: st.DataObject, stream: int) -> None:
        id = data.draw(self._ids())
        session = self.known[id]
        handle = self.hall.open(id, resume=True, stream=stream)
        session.last_use = self.now
        if stream:
            session.stream, session.handle, session.leaves = stream, handle, float("inf")

    @rule(stream=st.integers(1, 2))
    def end_stream(self, stream: int) -> None:
        self.hall.engine.post(StreamClosed(stream, True))
        for session in self.known.values():
            if session.stream == stream:
                session.stream = 0
                if session.grace is not None:
                    session.leaves = self.now + session.grace

    @precondition(lambda self: self.alive and len(self.known) < 32)
    @rule(data=st.data(), max_idle=IDLES, max_age=AGES)
    def fork(self, data: st.DataObject, max_idle: float, max_age: float) -> None:
        id, source = self._new_id(), data.draw(self._ids())
        self.hall.call(lambda sessions: sessions.fork(source, id, max_idle_s=max_idle, max_age_s=max_age))
        old = self.known[source]
        limits = max_idle or old.max_idle, max_age or old.max_age
        self.known[id] = Known(self.now, self.now, *limits, position=old.position)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def export(self, data: st.DataObject) -> None:
        id = data.draw(self._ids())
        state = self.hall.call(lambda sessions: sessions.export(id))
        self.states.append((state, self.known[id].grace, self.now - self.known[id].opened))

    @precondition(lambda self: self.states and len(self.known) < 32)
    @rule(data=st.data())
    def take_in(self, data: st.DataObject) -> None:
        state, grace, age = data.draw(st.sampled_from(self.states))
        id = self._new_id()
        self.hall.call(lambda sessions: sessions.import_state(state, id))
        limits = state.max_idle_s, state.max_age_s
        self.known[id] = Known(self.now - age, self.now, *limits, grace, position=state.position)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        id = data.draw(self._ids())
        self.hall.call(lambda sessions: sessions.close(id))
        del self.known[id]

    @rule(seconds=st.sampled_from([0.01, 0.2, 0.26, 1.0, 2.5, 9.0, 45.0, 890.0, 1e5]))
    def sleep(self, seconds: float) -> None:
        self.hall.sleep(seconds)

    @invariant()
    def agrees(self) -> None:
        found, num_open = self.hall.call(self._look)
        for id, reason in found.items():
            end = self.known[id].end
            if end > self.now + 1e-6:
                assert not reason, (id, self.known[id], self.now)
            elif end < self.now - REST_S - 1e-6:
                assert reason == "SESSION_EXPIRED", (id, self.known[id], self.now)
            if reason:
                del self.known[id]
        assert num_open == len(self.known)

    def _look(self, sessions: Any) -> tuple[dict[str, str], int]:
        """Why each known session is gone, and how many are open, both at one time."""
        return {id: why_gone(sessions, id) for id in self.known}, sessions.core.table.num_open


Ends.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestEnds = Ends.TestCase
