"""Stream: every refusal concerns its rows only; the stream and the other sessions go on."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import Answer, CloseSessions, Frame, OpenSessions, StreamRequest, StreamResponse
from cellar_proto.v1.inference_pb2_grpc import InferenceStub
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.sessions_pb2 import GetSessionRequest
from cellar_proto.v1.sessions_pb2_grpc import SessionsStub
from cellar_proto.v1.tensor_pb2 import Tensor


class Caller:
    """One stream, written and read by hand."""

    def __init__(self, channel: grpc.Channel, token: str = "") -> None:
        self._outbox: queue.SimpleQueue[StreamRequest | None] = queue.SimpleQueue()
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.call = InferenceStub(channel).Stream(iter(self._outbox.get, None), timeout=30, metadata=metadata)

    def send(self, **kind: object) -> None:
        self._outbox.put(StreamRequest(**kind))  # type: ignore[arg-type]

    def end(self) -> None:
        self._outbox.put(None)

    def receive(self) -> StreamResponse:
        return next(self.call)

    def open(self, *ids: str, model: str = "counter", **fields: object) -> list[int]:
        self.send(open=OpenSessions(frame_id=1, model=model, ids=ids, **fields))  # type: ignore[arg-type]
        return list(self.receive().opened.handles)

    def ask(self, handles: list[int], positions: list[int], values: list[float], **columns: object) -> Answer:
        """A frame with a step of `value` twice for each row, and its answer."""
        data = np.repeat(np.array(values, np.float32), 2).tobytes()
        columns.setdefault("inputs", Tensor(data=data))
        self.send(frame=Frame(frame_id=9, handles=handles, positions=positions, **columns))  # type: ignore[arg-type]
        return self.receive().answer


@pytest.fixture
def caller(channel: grpc.Channel) -> Iterator[Caller]:
    caller = Caller(channel)
    yield caller
    caller.end()


_number = iter(range(10**9))


def new_id() -> str:
    return f"contract-{next(_number)}"


def sums(answer: Answer) -> list[float]:
    return np.frombuffer(answer.outputs.data, np.float32).reshape(-1, 2)[:, 0].tolist()


def reasons(answer: Answer) -> dict[int, str]:
    return {error.row: Reason.Name(error.error.reason) for error in answer.errors}


BAD: list[tuple[str, Callable[[int], Frame]]] = [
    ("SHAPE_MISMATCH", lambda h: Frame(handles=[h], positions=[1], inputs=Tensor(data=b"1234"))),
    ("SHAPE_MISMATCH", lambda h: Frame(handles=[h], positions=[1], inputs=Tensor(data=bytes(8), shape=[2, 1]))),
    ("DTYPE_MISMATCH", lambda h: Frame(handles=[h], positions=[1], inputs=Tensor(data=bytes(8), dtype=2))),
    ("EMPTY_INPUT", lambda h: Frame(handles=[h], positions=[1], lengths=[0])),
    (
        "NON_FINITE_INPUT",
        lambda h: Frame(handles=[h], positions=[1], inputs=Tensor(data=np.array([1, np.inf], np.float32).tobytes())),
    ),
    ("POSITION_GAP", lambda h: Frame(handles=[h], positions=[5], inputs=Tensor(data=bytes(8)))),
    ("POSITION_CONFLICT", lambda h: Frame(handles=[h], positions=[0], inputs=Tensor(data=bytes(8)))),
    ("STALE_HANDLE", lambda h: Frame(handles=[h + (1 << 40)], positions=[1], inputs=Tensor(data=bytes(8)))),
    (
        "TOO_LARGE",
        lambda h: Frame(handles=[h], positions=[1], lengths=[20_000], inputs=Tensor(data=bytes(160_000))),
    ),
]


@pytest.mark.parametrize(("reason", "frame"), BAD, ids=[f"{i}-{reason}" for i, (reason, _) in enumerate(BAD)])
def test_a_bad_row_is_refused_and_all_else_goes_on(caller: Caller, reason: str, frame: Callable[[int], Frame]) -> None:
    good, bad = caller.open(new_id(), new_id())
    assert sums(caller.ask([good, bad], [0, 0], [1, 2])) == [1, 2]
    caller.send(frame=frame(bad))
    answer = caller.receive().answer
    assert reasons(answer) == {0: reason}
    assert list(answer.lengths) == [0]
    assert sums(caller.ask([bad, good], [1, 1], [5, 5])) == [7, 6]


def test_a_frame_naming_a_session_twice(caller: Caller) -> None:
    a, b = caller.open(new_id(), new_id())
    caller.send(frame=Frame(handles=[a, a, b], positions=[0, 1, 0], inputs=Tensor(data=bytes(24))))
    refused, answered = caller.receive().answer, caller.receive().answer
    assert reasons(refused) == {0: "DUPLICATE_SESSION", 1: "DUPLICATE_SESSION"}
    assert list(answered.handles) == [b]
    assert sums(caller.ask([a], [0], [3])) == [3]


@pytest.mark.parametrize("request_kind", [{}, {"frame": Frame(frame_id=4)}])
def test_messages_that_say_nothing(caller: Caller, request_kind: dict[str, object]) -> None:
    caller.open(new_id())
    caller.send(**request_kind)
    assert caller.receive().frame_error.error.reason in (Reason.INVALID_REQUEST, Reason.EMPTY_INPUT)


def test_a_frame_before_any_open(caller: Caller) -> None:
    assert reasons(caller.ask([1], [0], [1])) == {0: "STALE_HANDLE"}


def test_opening_what_cannot_be_opened(caller: Caller) -> None:
    id = new_id()
    caller.open(id)
    caller.send(open=OpenSessions(frame_id=2, model="counter", ids=[id, new_id()]))
    opened = caller.receive().opened
    assert {e.row: Reason.Name(e.error.reason) for e in opened.errors} == {0: "SESSION_EXISTS"}
    assert opened.handles[0] == 0 != opened.handles[1]
    for model, reason in (("nothing", Reason.MODEL_NOT_FOUND), ("broken", Reason.MODEL_BROKEN)):
        caller.send(open=OpenSessions(frame_id=3, model=model, count=1))
        assert caller.receive().frame_error.error.reason == reason
    caller.send(open=OpenSessions(frame_id=4, model="counter", ids=["never opened"], resume=True))
    assert caller.receive().opened.errors[0].error.reason == Reason.SESSION_NOT_FOUND


def test_a_step_after_close(caller: Caller) -> None:
    (a,) = caller.open(new_id())
    caller.ask([a], [0], [1])
    caller.send(close=CloseSessions(frame_id=3, handles=[a, 77]))
    closed = caller.receive().closed
    assert list(closed.positions) == [1, 0]
    assert {e.row: Reason.Name(e.error.reason) for e in closed.errors} == {1: "STALE_HANDLE"}
    assert reasons(caller.ask([a], [1], [1])) == {0: "SESSION_CLOSED"}


def test_a_retry_is_answered_and_not_run_again(caller: Caller) -> None:
    (a,) = caller.open(new_id())
    first = caller.ask([a], [0], [4])
    again = caller.ask([a], [0], [4])
    assert again.outputs.data == first.outputs.data
    assert sums(caller.ask([a], [1], [1])) == [5]


def test_an_empty_stream_ends_well(channel: grpc.Channel) -> None:
    caller = Caller(channel)
    caller.end()
    assert list(caller.call) == []
    assert caller.call.code() == grpc.StatusCode.OK


def test_half_closing_answers_what_was_sent(channel: grpc.Channel) -> None:
    caller = Caller(channel)
    (a,) = caller.open(new_id())
    for t in range(4):
        caller.send(frame=Frame(frame_id=t, handles=[a], positions=[t], inputs=Tensor(data=bytes(8))))
    caller.end()
    assert sum(len(response.answer.handles) for response in caller.call) == 4
    assert caller.call.code() == grpc.StatusCode.OK


def test_a_message_over_the_limit_ends_its_stream_only(channel: grpc.Channel) -> None:
    big, other = Caller(channel), Caller(channel)
    id = new_id()
    (a,) = big.open(id)
    (b,) = other.open(new_id())
    big.ask([a], [0], [1])
    big.send(frame=Frame(handles=[a], positions=[1], inputs=Tensor(data=bytes(2 << 20))))
    with pytest.raises(grpc.RpcError) as caught:
        big.receive()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sums(other.ask([b], [0], [2])) == [2]
    (a,) = other.open(id, resume=True)
    assert sums(other.ask([a], [1], [1])) == [2]
    other.end()


def test_sessions_outlive_their_stream(channel: grpc.Channel) -> None:
    first = Caller(channel)
    id = new_id()
    (a,) = first.open(id)
    first.ask([a], [0], [3])
    first.call.cancel()
    assert SessionsStub(channel).GetSession(GetSessionRequest(id=id), timeout=10).position == 1
    second = Caller(channel)
    (a,) = second.open(id, resume=True)
    assert sums(second.ask([a], [1], [3])) == [6]
    second.end()


def test_two_models_on_one_stream(caller: Caller) -> None:
    (a,) = caller.open(new_id())
    (b,) = caller.open(new_id(), model="other")
    assert sums(caller.ask([a], [0], [1])) == [1]
    assert sums(caller.ask([b], [0], [2])) == [2]
    assert sums(caller.ask([a], [1], [1])) == [2]
    caller.send(frame=Frame(frame_id=5, handles=[a, b], positions=[2, 1], inputs=Tensor(data=bytes(16))))
    errors = []
    for _ in range(2):
        answer = caller.receive().answer
        errors += [(answer.handles[each.row], each.error.reason) for each in answer.errors]
    assert errors == [(b, Reason.STALE_HANDLE)]


def test_an_unread_stream_is_read_no_further_and_others_go_on(channel: grpc.Channel, running: object) -> None:
    slow, quick = Caller(channel), Caller(channel)
    (a,) = slow.open(new_id())
    (b,) = quick.open(new_id())
    engine = running.server.registry.find("counter")  # type: ignore[attr-defined]
    before = engine.counters().chunks
    # 400 answers of 80 kB: more than the transport holds for a reader that does not read
    steps = 10_000
    for t in range(400):
        frame = Frame(
            frame_id=t, handles=[a], positions=[t * steps], lengths=[steps], inputs=Tensor(data=bytes(8 * steps))
        )
        slow.send(frame=frame)
    seen = -1
    while seen != (seen := engine.counters().chunks):
        time.sleep(0.5)
    assert seen - before < 400
    assert sums(quick.ask([b], [0], [1])) == [1]
    taken = refused = 0
    while taken + refused < 400:
        answer = slow.receive().answer
        refused += len(answer.errors)
        taken += len(answer.handles) - len(answer.errors)
    # what was refused came while four chunks of the session were in flight, or behind such a one
    assert taken >= seen - before
    slow.end()
    quick.end()


def test_many_streams_at_once(channel: grpc.Channel) -> None:
    callers = [Caller(channel) for _ in range(48)]
    handles = [caller.open(new_id())[0] for caller in callers]
    for t in range(10):
        for i, (caller, handle) in enumerate(zip(callers, handles, strict=True)):
            data = np.full(2, i, np.float32).tobytes()
            caller.send(frame=Frame(frame_id=t, handles=[handle], positions=[t], inputs=Tensor(data=data)))
        for i, caller in enumerate(callers):
            assert sums(caller.receive().answer) == [i * (t + 1)]
    for caller in callers:
        caller.end()
