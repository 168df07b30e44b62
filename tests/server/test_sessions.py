"""Sessions by themselves: positions, retries, atomic chunks, limits. The hidden state is a counter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.tensor_pb2 import INT64, Tensor
from cellar_server.errors import CellarError
from cellar_server.sessions.messages import FrameRequest, PredictReply, PredictRequest, StepRequest, StreamClosed
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.fakes.bench import Bench, reason_of
from tests.fakes.runtime import CounterRuntime, counter_model


@pytest.fixture
def bench() -> Bench:
    return Bench(counter_model())


def test_state_is_kept_between_frames(bench: Bench) -> None:
    a, b = bench.open(2)
    bench.send([a, b], [0, 0], [[1, 2], [10]])
    bench.run()
    first = bench.take()
    bench.send([b, a], [1, 2], [[10], [3]])
    bench.run()
    second = bench.take()
    assert first[a, 0].tolist() == [1, 3]
    assert first[b, 0].tolist() == [10]
    assert second[a, 2].tolist() == [6]
    assert second[b, 1].tolist() == [20]


def test_a_retry_is_answered_from_the_store(bench: Bench) -> None:
    (a,) = bench.open()
    bench.send([a], [0], [[1, 2]])
    bench.run()
    first = bench.take()[a, 0]
    bench.send([a], [0], [[1, 2]])
    assert bench.run() == 0
    assert np.array_equal(bench.take()[a, 0], first)
    bench.send([a], [2], [[3]])
    bench.run()
    assert bench.take()[a, 2].tolist() == [6]


def test_a_retry_of_a_waiting_chunk_gets_its_answer_too(bench: Bench) -> None:
    (a,) = bench.open()
    bench.send([a], [0], [[5]])
    bench.send([a], [0], [[5]])
    assert bench.run() == 1
    replies = bench.sessions.take_replies()
    assert [reply.outputs.ravel().tolist() for reply in replies] == [[5], [5]]


@pytest.mark.parametrize(
    ("start", "chunk", "reason"),
    [
        (5, [1], "POSITION_GAP"),
        (0, [9], "POSITION_CONFLICT"),
        (0, [1, 2, 3], "POSITION_CONFLICT"),
        (1, [2], "POSITION_CONFLICT"),
    ],
)
def test_other_positions_and_contents_are_refused(bench: Bench, start: int, chunk: list[float], reason: str) -> None:
    (a,) = bench.open()
    bench.send([a], [0], [[1, 2]])
    bench.run()
    bench.take()
    bench.send([a], [start], [chunk])
    error = bench.take()[a, start]
    assert reason_of(error) == reason
    assert error.expected_position == 2
    bench.send([a], [2], [[1]])
    bench.run()
    assert bench.take()[a, 2].tolist() == [4]


def test_old_answers_are_kept_no_longer(bench: Bench) -> None:
    (a,) = bench.open()
    for t in range(6):
        bench.send([a], [t], [[1]])
        bench.run()
    bench.take()
    bench.send([a], [0], [[1]])
    assert reason_of(bench.take()[a, 0]) == "ANSWER_EXPIRED"
    bench.send([a], [2], [[1]])
    assert bench.take()[a, 2].tolist() == [3]


def test_chunks_by_session_id_have_an_asker_each() -> None:
    bench = Bench(counter_model())
    handles = bench.open(3)
    ids = [session.id for session in (bench.sessions._info(slot) for slot in range(3))]

    def step(to: str, id: str, value: float, **options: Any) -> StepRequest:
        return StepRequest(to, id, 0, [], np.array([value], np.float32).tobytes(), 1, **options)

    bench.sessions.admit([step(f"a{i}", id, i + 1.0) for i, id in enumerate(ids)])
    bench.run()
    replies = bench.sessions.take_replies()
    assert {reply.to: reply.outputs.ravel().tolist() for reply in replies} == {"a0": [1], "a1": [2], "a2": [3]}
    # two of one session at once start one behind the other; a new one is opened, an unknown one refused
    bench.sessions.admit(
        [step("b", ids[0], 1), step("c", ids[0], 2), step("new", "mine", 5, opens=True), step("no", "nobody", 1)]
    )
    bench.run()
    replies = {reply.to: reply for reply in bench.sessions.take_replies()}
    assert [replies[to].outputs.ravel().tolist() for to in ("b", "c", "new")] == [[2], [4], [5]]
    assert reason_of(replies["no"].error) == "SESSION_NOT_FOUND"
    # sent again with its position: the stored answer, opened or not
    bench.sessions.admit([step("again", "mine", 5, opens=True, position=0), step("twice", "mine", 5, opens=True)])
    replies = {reply.to: reply for reply in bench.sessions.take_replies()}
    assert replies["again"].outputs.ravel().tolist() == [5]
    assert reason_of(replies["twice"].error) == "SESSION_EXISTS"
    # the handle of the stream is void: the session was taken up elsewhere
    bench.send([handles[0]], [3], [[1]])
    assert reason_of(bench.take()[handles[0], 3]) == "STALE_HANDLE"
    # a first chunk that is refused opens nothing
    bench.sessions.admit([step("bad", "never", float("nan"), opens=True)])
    assert reason_of(bench.sessions.take_replies()[0].errors[0][1]) == "NON_FINITE_INPUT"
    assert not bench.directory.has("never")


def test_a_session_with_a_grace_outlives_its_stream_by_that_only() -> None:
    bench = Bench(counter_model())
    keep, brief, at_once = (
        bench.sessions.open([], count=1, stream=1, grace_s=grace)[0].id for grace in (None, 5.0, 0.0)
    )
    with pytest.raises(CellarError, match="grace"):
        raise bench.sessions.open([], count=1, stream=1, grace_s=-1.0)[0]
    bench.sessions.admit([StreamClosed(1, True)])
    assert bench.sessions.expire_at <= bench.clock.now
    bench.sessions.expire()
    assert not bench.directory.has(at_once)
    with pytest.raises(CellarError, match="nobody took it up within 0 s") as caught:
        bench.sessions.get(at_once)
    assert reason_of(caught.value) == "SESSION_EXPIRED"
    bench.clock.now += 4
    bench.sessions.expire()
    bench.sessions.open([brief], resume=True, stream=2)  # taken up in time
    bench.clock.now += 4
    bench.sessions.expire()
    assert bench.directory.has(brief)
    bench.sessions.admit([StreamClosed(2, False)])
    bench.clock.now += 5
    bench.sessions.expire()
    assert not bench.directory.has(brief)
    assert bench.directory.has(keep)


def test_large_answers_are_bounded() -> None:
    bench = Bench(counter_model(), answer_bytes=64)
    (a,) = bench.open()
    bench.send([a], [0], [[1] * 10])
    bench.send([a], [10], [[1] * 10])
    bench.run()
    bench.take()
    assert bench.sessions.core.answers.num_bytes == 40 + 2 * 24  # one answer, and what is kept about two
    bench.send([a], [0], [[1] * 10])
    assert reason_of(bench.take()[a, 0]) == "ANSWER_EXPIRED"
    bench.send([a], [10], [[1] * 10])
    assert bench.take()[a, 10].tolist() == list(range(11, 21))


def test_bad_rows_leave_the_others_alone(bench: Bench) -> None:
    a, b, c = bench.open(3)
    bench.send([a, b, c, b + 1], [0, 0, 7, 0], [[1], [np.nan], [1], [1]])
    bench.run()
    answers = bench.take()
    assert answers[a, 0].tolist() == [1]
    assert reason_of(answers[b, 0]) == "NON_FINITE_INPUT"
    assert reason_of(answers[c, 7]) == "POSITION_GAP"
    assert reason_of(answers[b + 1, 0]) == "STALE_HANDLE"


def test_a_session_named_twice_is_refused_and_the_others_run(bench: Bench) -> None:
    a, b = bench.open(2)
    bench.send([a, b, a], [0, 0, 1], [[1], [2], [1]])
    bench.run()
    answers = bench.take()
    assert reason_of(answers[a, 0]) == reason_of(answers[a, 1]) == "DUPLICATE_SESSION"
    assert answers[b, 0].tolist() == [2]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (Frame(frame_id=1), "EMPTY_INPUT"),
        (Frame(frame_id=1, handles=[1, 2], positions=[0]), "INVALID_REQUEST"),
        (Frame(frame_id=1, handles=[1, 2, 3], positions=[0, 0, 0], lengths=[1, 1]), "INVALID_REQUEST"),
    ],
)
def test_columns_that_do_not_fit(bench: Bench, frame: Frame, reason: str) -> None:
    bench.sessions.admit([FrameRequest("me", 1, frame, frame.frame_id)])
    assert reason_of(bench.take()[-1, 1]) == reason


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (Tensor(data=b"123"), "SHAPE_MISMATCH"),
        (Tensor(data=b"12345678"), "SHAPE_MISMATCH"),
        (Tensor(data=b"1234", shape=[1, 2]), "SHAPE_MISMATCH"),
        (Tensor(data=b"1234", dtype=INT64), "DTYPE_MISMATCH"),
    ],
)
def test_inputs_that_do_not_fit(bench: Bench, inputs: Tensor, reason: str) -> None:
    (a,) = bench.open()
    frame = Frame(frame_id=1, handles=[a], positions=[0], inputs=inputs)
    bench.sessions.admit([FrameRequest("me", 1, frame, frame.frame_id)])
    assert reason_of(bench.take()[a, 0]) == reason


def test_a_failed_run_commits_nothing_and_tells_nothing() -> None:
    bench = Bench(counter_model(CounterRuntime(fail_on=frozenset({1}))))
    (a,) = bench.open()
    bench.send([a], [0], [[1]])
    bench.run()
    bench.take()
    bench.send([a], [1], [[2]])
    bench.send([a], [2], [[3]])
    bench.run()
    answers = bench.take()
    assert reason_of(answers[a, 1]) == "RUN_FAILED"
    assert "secret" not in answers[a, 1].message
    assert answers[a, 1].error_id
    assert reason_of(answers[a, 2]) == "POSITION_GAP"
    assert answers[a, 2].expected_position == 1
    bench.send([a], [1], [[2]])
    bench.run()
    assert bench.take()[a, 1].tolist() == [3]


def test_a_late_chunk_is_dropped_before_it_is_computed(bench: Bench) -> None:
    (a,) = bench.open()
    bench.send([a], [0], [[1]], timeouts_ms=[50])
    bench.clock.now += 0.1
    bench.run()
    assert reason_of(bench.take()[a, 0]) == "DEADLINE_EXCEEDED"
    assert bench.sessions.core.counts.steps == 0
    assert bench.sessions.get(bench.directory.ids("", 1)[0][0]).position == 0


def test_chunks_in_flight_are_bounded(bench: Bench) -> None:
    (a,) = bench.open()
    for t in range(5):
        bench.send([a], [t], [[1]])
    error = bench.take()[a, 4]
    assert reason_of(error) == "OVERLOADED"
    assert error.retry_after_ms > 0
    bench.run()
    assert bench.take()[a, 3].tolist() == [4]


def test_the_queue_is_bounded() -> None:
    bench = Bench(counter_model(), max_queue_rows=3)
    handles = bench.open(4)
    bench.send(handles[:2], [0, 0], [[1], [1]])
    bench.send(handles[2:], [0, 0], [[1], [1]])
    assert [reason_of(e) for e in bench.take().values()] == ["OVERLOADED"]
    bench.run()
    assert len(bench.take()) == 3
    assert bench.sessions.is_idle


def test_a_session_expires_and_says_why(bench: Bench) -> None:
    opened = bench.sessions.open(["mine"], stream=1, max_idle_s=5)[0]
    bench.clock.now += 4
    bench.sessions.expire()
    bench.send([opened.handle], [0], [[1]])
    bench.run()
    assert bench.take()[opened.handle, 0].tolist() == [1]
    bench.clock.now += 5
    bench.sessions.expire()
    bench.send([opened.handle], [1], [[1]])
    assert reason_of(bench.take()[opened.handle, 1]) == "SESSION_EXPIRED"
    with pytest.raises(CellarError, match=r"idle for 5.0 s, its limit is 5 s"):
        bench.sessions.get("mine")
    assert bench.sessions.core.counts.sessions_expired == 1
    bench.sessions.open(["mine"])
    assert bench.sessions.get("mine").position == 0


def test_an_absolute_limit_holds_for_a_busy_session(bench: Bench) -> None:
    (handle,) = [o.handle for o in bench.sessions.open(["mine"], stream=1, max_age_s=3)]
    for t in range(3):
        bench.send([handle], [t], [[1]])
        bench.run()
        bench.clock.now += 1
    bench.sessions.expire()
    with pytest.raises(CellarError, match="open for"):
        bench.sessions.get("mine")


def test_open_close_and_fork_may_be_sent_again(bench: Bench) -> None:
    sessions = bench.sessions
    first = sessions.open(["a"], token=b"1")[0]
    assert sessions.open(["a"], token=b"1")[0] == first
    assert reason_of(sessions.open(["a"], token=b"2")[0]) == "SESSION_EXISTS"
    assert reason_of(sessions.open(["a"])[0]) == "SESSION_EXISTS"
    assert sessions.fork("a", "b", token=b"3") == sessions.fork("a", "b", token=b"3")
    closed = sessions.close("a", token=b"4")
    assert sessions.close("a", token=b"4") == closed
    with pytest.raises(CellarError, match="was closed"):
        sessions.close("a", token=b"5")
    assert sessions.core.counts.sessions_opened == 2


def test_a_fork_goes_its_own_way(bench: Bench) -> None:
    opened = bench.sessions.open(["a"], stream=1)[0]
    bench.send([opened.handle], [0], [[1, 2]])
    bench.run()
    bench.take()
    bench.sessions.fork("a", "b")
    fork = bench.sessions.open(["b"], resume=True, stream=1)[0]
    assert fork.position == 2
    bench.send([opened.handle, fork.handle], [2, 2], [[10], [20]])
    bench.run()
    answers = bench.take()
    assert answers[opened.handle, 2].tolist() == [13]
    assert answers[fork.handle, 2].tolist() == [23]


def test_a_taken_up_session_leaves_its_old_handle_stale(bench: Bench) -> None:
    old = bench.sessions.open(["a"], stream=1)[0]
    new = bench.sessions.open(["a"], resume=True, stream=2)[0]
    bench.send([old.handle], [0], [[1]])
    assert reason_of(bench.take()[old.handle, 0]) == "STALE_HANDLE"
    bench.send([new.handle], [0], [[1]], stream=1)
    assert reason_of(bench.take()[new.handle, 0]) == "STALE_HANDLE"
    bench.send([new.handle], [0], [[1]], stream=2)
    bench.run()
    assert bench.take()[new.handle, 0].tolist() == [1]


def test_a_reused_slot_cannot_be_reached_by_an_old_handle(bench: Bench) -> None:
    (old,) = bench.open()
    bench.sessions.close_handles(1, [old])
    (new,) = bench.open()
    assert old & 0xFFFFFFFF == new & 0xFFFFFFFF
    bench.send([old], [0], [[1]])
    assert reason_of(bench.take()[old, 0]) == "SESSION_CLOSED"


def test_closing_answers_what_waits(bench: Bench) -> None:
    (a,) = bench.open()
    bench.send([a], [0], [[1]])
    bench.send([a], [1], [[1]])
    bench.sessions.close_handles(1, [a])
    answers = bench.take()
    assert reason_of(answers[a, 0]) == "SESSION_CLOSED"
    assert bench.run() == 0
    assert bench.sessions.is_idle


def test_a_cancelled_stream_drops_what_has_not_begun_and_keeps_its_sessions(bench: Bench) -> None:
    opened = bench.sessions.open(["a"], stream=1)[0]
    bench.send([opened.handle], [0], [[1]])
    bench.sessions.admit([StreamClosed(1, True)])
    assert bench.run() == 0
    assert bench.sessions.is_idle
    assert bench.sessions.get("a").position == 0


def test_whole_sequences_of_any_lengths(bench: Bench) -> None:
    data = np.arange(1, 7, dtype=np.float32).tobytes()
    bench.sessions.admit([PredictRequest("me", [3, 0, 1, 2], 0, [], data, True)])
    bench.run()
    (reply,) = bench.sessions.take_replies()
    assert isinstance(reply, PredictReply)
    assert reply.lengths == [3, 0, 1, 2]
    assert reply.outputs.ravel().tolist() == [1, 3, 6, 4, 5, 11]
    assert [(row, reason_of(error)) for row, error in reply.errors] == [(1, "EMPTY_INPUT")]
    bench.sessions.admit([PredictRequest("me", [3, 3], 0, [], data, False)])
    bench.run()
    (reply,) = bench.sessions.take_replies()
    assert reply.outputs.ravel().tolist() == [6, 15]
    assert bench.sessions.is_idle


class Life(RuleBasedStateMachine):
    """Random lives of sessions against a dictionary of sums: nothing lost, nothing taken twice, nothing mixed up."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(counter_model(), max_sessions=8, max_queue_rows=64)
        self.handles: dict[str, int] = {}
        self.sums: dict[str, float] = {}
        self.taken: dict[str, list[tuple[int, list[float], list[float]]]] = {}
        self.number = 0

    @rule()
    def open(self) -> None:
        self.number += 1
        id = f"s{self.number}"
        opened = self.bench.sessions.open([id], stream=1)[0]
        if len(self.handles) == 8:
            assert reason_of(opened) == "OVERLOADED"
        else:
            self.handles[id], self.sums[id], self.taken[id] = opened.handle, 0.0, []

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), bad=st.booleans())
    def step(self, data: st.DataObject, bad: bool) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.handles)), min_size=1, unique=True))
        chunks = {id: data.draw(st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=40)) for id in ids}
        poisoned = ids[0] if bad else None
        if poisoned:
            chunks[poisoned] = [float("nan")]
        starts = {id: sum(len(chunk) for _, chunk, _ in self.taken[id]) for id in ids}
        self.bench.send([self.handles[id] for id in ids], [starts[id] for id in ids], [chunks[id] for id in ids])
        self.bench.run()
        answers = self.bench.take()
        for id in ids:
            answer = answers[self.handles[id], starts[id]]
            if id == poisoned:
                assert reason_of(answer) == "NON_FINITE_INPUT"
                continue
            expected = (self.sums[id] + np.cumsum(chunks[id])).tolist()
            assert answer.tolist() == expected
            self.sums[id] = expected[-1]
            self.taken[id].append((starts[id], chunks[id], expected))

    @precondition(lambda self: any(self.taken.values()))
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(id for id, taken in self.taken.items() if taken)))
        start, chunk, expected = data.draw(st.sampled_from(self.taken[id][-4:]))
        runs = self.bench.sessions.core.counts.runs
        self.bench.send([self.handles[id]], [start], [chunk])
        assert self.bench.take()[self.handles[id], start].tolist() == expected
        assert self.bench.sessions.core.counts.runs == runs

    @precondition(lambda self: self.handles and len(self.handles) < 8)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from(sorted(self.handles)))
        self.number += 1
        id = f"s{self.number}"
        self.bench.sessions.fork(source, id)
        self.handles[id] = self.bench.sessions.open([id], resume=True, stream=1)[0].handle
        self.sums[id], self.taken[id] = self.sums[source], list(self.taken[source])

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.handles)))
        assert self.bench.sessions.close(id).position == sum(len(chunk) for _, chunk, _ in self.taken[id])
        del self.handles[id], self.sums[id], self.taken[id]

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        kept = data.draw(st.sampled_from(sorted(self.handles)))
        self.bench.clock.now += 899
        self.bench.sessions.open([kept], resume=True)
        self.bench.clock.now += 2
        self.bench.sessions.expire()
        for id in set(self.handles) - {kept}:
            with pytest.raises(CellarError):
                self.bench.sessions.get(id)
            del self.handles[id], self.sums[id], self.taken[id]

    @invariant()
    def agrees(self) -> None:
        core = self.bench.sessions.core
        assert core.table.num_open == len(self.handles) == self.bench.directory.count()
        assert core.work.num_used == 0
        assert not core.work.lots
        assert core.counts.padded_steps == 0


Life.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestLife = Life.TestCase
