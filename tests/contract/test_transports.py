"""What one transport answers, the other answers too, byte for byte; and what the native one does by itself."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cellar_proto.v1 import inference_pb2 as pb
from cellar_proto.v1 import inference_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from cellar_server import transport
from cellar_server.config import Config
from cellar_server.limits import Limits
from cellar_server.runtime.base import StartupError
from cellar_server.transport import SOURCES, is_native_built, is_native_stale
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.conftest import Running
from tests.fakes.zoo import write_counter

pytestmark = pytest.mark.skipif(not is_native_built(), reason="the native transport is not built (make native)")

WINDOW = 4


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    """A server of each transport: grpc.aio's first."""
    zoo = tmp_path_factory.mktemp("zoo")
    write_counter(zoo)
    write_counter(zoo, "other")
    servers = [
        Running(Config(listen="127.0.0.1:0", transport=name, models=zoo, max_frames_in_flight=WINDOW, drain_s=5))
        for name in ("aio", "native")
    ]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Running]]:
    """The same, whose callers are limited."""
    zoo = tmp_path_factory.mktemp("limited")
    write_counter(zoo)
    write_counter(zoo, "other")
    more = {"*": Limits(max_steps_per_s=1e-6, burst_steps=12, max_chunks_in_flight=1)}
    servers = [
        Running(Config(listen="127.0.0.1:0", transport=name, models=zoo, caller_limits=more, drain_s=5))
        for name in ("aio", "native")
    ]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(params=[0, 1], ids=["aio", "native"])
def each(both: list[Running], request: pytest.FixtureRequest) -> Running:
    """One of both, after the other."""
    return both[request.param]


class Caller:
    """One stream, its answers read one by one."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.requests: list[pb.StreamRequest] = []
        self._is_over = False
        self.handles: dict[str, list[int]] = {}
        self.call = inference_pb2_grpc.InferenceStub(self.channel).Stream(self._next())

    def _next(self) -> Iterator[pb.StreamRequest]:
        while True:
            while not self.requests:
                if self._is_over:
                    return
                time.sleep(0.0005)
            yield self.requests.pop(0)

    def open(self, model: str, count: int) -> None:
        self.requests.append(pb.StreamRequest(open=pb.OpenSessions(frame_id=1, model=model, count=count)))
        self.handles[model] = list(next(self.call).opened.handles)

    def send(self, frame: pb.Frame) -> None:
        self.requests.append(pb.StreamRequest(frame=frame))

    def read(self) -> pb.StreamResponse:
        return next(self.call)

    def end(self) -> list[pb.StreamResponse]:
        """Half-closes; the answers that were not read yet."""
        self._is_over = True
        return list(self.call)

    def close(self) -> None:
        self._is_over = True
        self.channel.close()


def counters(server: Running) -> dict[str, int]:
    return server.server._grpc.transport.counters()  # type: ignore[union-attr]


def frame(handles: list[int], positions: list[int], values: list[list[float]], **more: Any) -> pb.Frame:
    """values: [steps] of each row; each step of the counter takes two numbers."""
    made = pb.Frame(handles=handles, positions=positions, **more)
    made.inputs.data = b"".join(np.repeat(np.array(row, "<f4"), 2).tobytes() for row in values)
    return made


@st.composite
def frames(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Frames of two sessions of each of two models: sound ones mostly, and every kind of odd one."""
    made = []
    for number in range(draw(st.integers(1, 12))):
        model = draw(st.sampled_from(["counter", "counter", "counter", "other"]))
        rows = draw(st.sampled_from([[0], [0], [1], [0, 1], [0, 0]]))
        steps = draw(st.sampled_from([1, 1, 1, 2, 5]))
        made.append(
            {
                "model": model,
                "rows": rows,
                "steps": steps,
                # of the position that a careful caller would name
                "shift": draw(st.sampled_from([0, 0, 0, 0, 0, -1, 1, 7])),
                "value": draw(st.sampled_from([1.0, 2.0, -3.0, 0.0, float("nan")])),
                "lengths": draw(st.sampled_from(["one", "each", "wrong"])) if steps > 1 else "none",
                "shape": draw(st.sampled_from([None, None, "right", "wrong"])),
                "dtype": draw(st.sampled_from([0, 0, 1, 2])),
                "bytes": draw(st.sampled_from([0, 0, 0, 0, 0, 1, -8])),
                "timeouts": draw(st.sampled_from([[], [], [60_000], [60_000] * 3])),
                "priorities": draw(st.sampled_from([[], [], [1]])),
                "ends": draw(st.sampled_from([[], [], [True]])),
                "stale": draw(st.sampled_from([False] * 9 + [True])),
                "frame_id": draw(st.sampled_from([number + 10, number + 10, 0])),
            }
        )
    return made


def play(address: str, script: list[dict[str, Any]]) -> list[bytes]:
    """Plays a script, a frame after the other was answered; the answers, their handles made comparable."""
    caller = Caller(address)
    answers = []
    try:
        for model in ("counter", "other"):
            caller.open(model, 2)
        names = {handle: f"{model}{i}" for model, found in caller.handles.items() for i, handle in enumerate(found)}
        position = dict.fromkeys(names.values(), 0)
        for each in script:
            handles = [caller.handles[each["model"]][row] for row in each["rows"]]
            at = [max(0, position[names[handle]] + each["shift"]) for handle in handles]
            made = frame(handles, at, [[each["value"]] * each["steps"]] * len(handles), frame_id=each["frame_id"])
            lengths = {"none": [], "one": [each["steps"]], "each": [each["steps"]] * len(handles), "wrong": [9]}
            made.lengths.extend(lengths[each["lengths"]])
            if each["shape"]:
                total = each["steps"] * len(handles)
                made.inputs.shape.extend([total, 2] if each["shape"] == "right" else [total, 3])
            made.inputs.dtype = each["dtype"]
            if each["bytes"] > 0:
                made.inputs.data += b"\0" * each["bytes"]
            elif each["bytes"]:
                made.inputs.data = made.inputs.data[: each["bytes"]]
            made.timeouts_ms.extend(each["timeouts"])
            made.priorities.extend(each["priorities"])
            made.ends.extend(each["ends"])
            if each["stale"]:
                made.handles[0] ^= 1 << 40
            caller.send(made)
            left = len(handles)
            while left > 0:
                answer = caller.read()
                if answer.WhichOneof("kind") == "frame_error":
                    left = 0
                else:
                    left -= len(answer.answer.handles)
                    for i, handle in enumerate(answer.answer.handles):
                        if handle in names:
                            position[names[handle]] = answer.answer.positions[i]
                            answer.answer.handles[i] = sorted(names.values()).index(names[handle])
                        else:
                            answer.answer.handles[i] = 99
                answers.append(answer.SerializeToString(deterministic=True))
        assert caller.end() == []
    finally:
        caller.close()
    return sorted(answers)


@settings(max_examples=60)
@given(frames())
def test_both_transports_answer_the_same(both: list[Running], script: list[dict[str, Any]]) -> None:
    assert play(both[0].address, script) == play(both[1].address, script)


@settings(max_examples=40)
@given(frames())
def test_both_transports_refuse_the_same_of_a_limited_caller(
    limited: list[Running], script: list[dict[str, Any]]
) -> None:
    for server in limited:
        server.server.registry.rations._callers.clear()  # a full bucket
        server.server.registry.rations._rations.clear()
    assert play(limited[0].address, script) == play(limited[1].address, script)
    for server in limited:
        assert server.server.registry.rations._callers[""].in_flight == 0


def test_frames_of_one_row_go_as_rows_and_share_runs(each: Running) -> None:
    server = each
    before = counters(server)["rows"]
    with ExitStack() as stack:
        callers = [Caller(server.address) for _ in range(6)]
        for caller in callers:
            stack.callback(caller.close)
            caller.open("counter", 1)
        for step in range(5):
            for caller in callers:
                caller.send(frame(caller.handles["counter"], [step], [[1.0]], frame_id=step))
            for caller in callers:
                answer = caller.read().answer
                assert list(answer.frame_ids) == [step]
                assert list(answer.positions) == [step + 1]
                assert np.frombuffer(answer.outputs.data, "<f4").tolist() == [step + 1.0] * 2
    assert counters(server)["rows"] - before == 30


def test_rows_keep_their_order_beside_other_messages(each: Running) -> None:
    caller = Caller(each.address)
    try:
        caller.open("counter", 2)
        a, b = caller.handles["counter"]
        # nothing is waited for: a row, a frame of two rows and rows again must reach the sessions as they were sent
        sent = [([a], [0]), ([a, b], [1, 0]), ([a], [2]), ([b], [1]), ([a, b], [3, 2]), ([b], [3])]
        answers = []
        for number, (handles, positions) in enumerate(sent):
            caller.send(frame(handles, positions, [[1.0]] * len(handles), frame_id=number))
        while sum(len(answer.answer.handles) for answer in answers) < 8:
            answers.append(caller.read())
            assert not answers[-1].answer.errors
        assert caller.end() == []
    finally:
        caller.close()


def test_a_half_close_waits_for_the_answers_of_rows(each: Running) -> None:
    caller = Caller(each.address)
    try:
        caller.open("counter", 3)
        for number, handle in enumerate(caller.handles["counter"]):
            caller.send(frame([handle], [0], [[float(number)] * 50], lengths=[50], frame_id=number))
        assert sorted(i for answer in caller.end() for i in answer.answer.frame_ids) == [0, 1, 2]
        assert caller.call.code() is grpc.StatusCode.OK
    finally:
        caller.close()


def test_a_stream_whose_answers_are_not_read_is_read_no_further(each: Running) -> None:
    server = each
    caller, other = Caller(server.address), Caller(server.address)
    try:
        caller.open("counter", 1)
        other.open("counter", 1)
        handle, steps = caller.handles["counter"][0], 8000
        before = counters(server)["messages"]
        for number in range(200):  # 64 kB of answer each: more than the connection holds
            caller.send(frame([handle], [number * steps], [[0.0] * steps], lengths=[steps], frame_id=number))
        seen = -1
        while seen != (seen := counters(server)["messages"] - before):
            time.sleep(0.3)
        assert seen < 200
        other.send(frame(other.handles["counter"], [0], [[1.0]]))
        assert other.read().answer.positions == [1]  # others go on
        read = [caller.read().answer.frame_ids[0] for _ in range(200)]
        assert read == list(range(200))
    finally:
        caller.close()
        other.close()


def test_malformed_messages_end_their_call_with_a_reason(both: list[Running]) -> None:
    for server in both:
        with grpc.insecure_channel(server.address) as channel:
            stream = channel.stream_stream("/cellar.v1.Inference/Stream")
            unary = channel.unary_unary("/cellar.v1.Inference/Step")
            for message in (b"\xff" * 20, b"\x12\x7f\x01", b"\x12\x05\x0a\xff\xff\xff\x0f"):
                with pytest.raises(grpc.RpcError):
                    list(stream(iter([message]), timeout=10))
                with pytest.raises(grpc.RpcError):
                    unary(message, timeout=10)
            predict = channel.unary_unary("/cellar.v1.Inference/Predict")
            with pytest.raises(grpc.RpcError) as caught:  # a row but for the name of its model, which is no UTF-8
                predict(b"\x0a\x02\xff\xfe\x22\x0a\x1a\x08" + b"\0" * 8, timeout=10)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.details() == "the message cannot be read"
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/cellar.v1.Inference/Nothing")(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            with pytest.raises(grpc.RpcError) as caught:
                unary(b"x" * (17 << 20), timeout=10)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_unary_call_without_a_message_ends_with_an_error(both: list[Running]) -> None:
    with grpc.insecure_channel(both[1].address) as channel:  # grpc.aio's waits for the deadline
        for method in ("Step", "Predict"):
            with pytest.raises(grpc.RpcError) as caught:
                list(channel.stream_stream(f"/cellar.v1.Inference/{method}")(iter([]), timeout=10))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_unary_steps_answer_the_same(both: list[Running]) -> None:
    found: list[list[Any]] = []
    for number, server in enumerate(both):
        answers: list[Any] = []
        before = counters(server)["rows"] if number else 0
        with grpc.insecure_channel(server.address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            sessions = sessions_pb2_grpc.SessionsStub(channel)
            id = "ein-schritt"
            sessions.OpenSession(sessions_pb2.OpenSessionRequest(model="counter", id=id))

            def step(answers: list[Any] = answers, stub: Any = stub, **request: Any) -> None:
                values = request.pop("values", [1.0])
                made = pb.StepRequest(**{"session_id": "ein-schritt", **request})
                made.inputs.data = np.repeat(np.array(values, "<f4"), 2).tobytes()
                try:
                    answers.append(stub.Step(made, timeout=10).SerializeToString())
                except grpc.RpcError as error:
                    trailing = dict(error.trailing_metadata())  # type: ignore[attr-defined]
                    answers.append((error.code(), error.details(), trailing.get("cellar-error-bin")))  # type: ignore[attr-defined]

            step()
            step(position=1)
            step(position=1)  # its answer again
            step(position=1, values=[2.0])
            step(position=9)
            step(values=[1.0, 1.0, 1.0], length=3)
            step(values=[1.0, 1.0, 1.0], length=2)
            step(values=[float("inf")])
            step(session_id="no-such")
            step(session_id="")
            step(values=[])
            step(ends=True, priority=1, timeout_ms=60_000)
            sessions.CloseSession(sessions_pb2.CloseSessionRequest(id=id))
            step()
        assert number == 0 or counters(server)["rows"] - before >= 10
        found.append(answers)
    assert found[0] == found[1]


@st.composite
def predicts(draw: st.DrawFn) -> dict[str, Any]:
    """A call of whole sequences: mostly one sound sequence, and every kind of odd one."""
    steps = draw(st.sampled_from([1, 1, 2, 5, 40]))
    lengths = draw(st.sampled_from([[], [], [steps], [steps], [0], [steps + 1], [1] * steps, [1 << 31]]))
    return {
        "model": draw(st.sampled_from(["counter", "counter", "counter", "other", "none", "", "\u00e4"])),
        "version": draw(st.sampled_from([0, 0, 0, 1, 7])),
        "lengths": lengths,
        "values": [draw(st.sampled_from([1.0, 2.0, -3.0, 1.0, 1.0, float("nan")])) for _ in range(steps)],
        "shape": draw(st.sampled_from([[], [], [steps, 2], [steps, 3], [steps], [steps + 1, 2]])),
        "dtype": draw(st.sampled_from([0, 0, 1, 2, 77])),
        "bytes": draw(st.sampled_from([0, 0, 0, 0, 0, 4, -8])),
        "all_emissions": draw(st.sampled_from([None, None, True, False])),
        "timeout_ms": draw(st.sampled_from([0, 0, 60_000])),
        "is_bulk": draw(st.sampled_from([False, False, True])),
    }


def ask_predict(stub: inference_pb2_grpc.InferenceStub, call: dict[str, Any]) -> Any:
    made = pb.PredictRequest(
        model=call["model"], version=call["version"], timeout_ms=call["timeout_ms"], is_bulk=call["is_bulk"]
    )
    made.lengths.extend(call["lengths"])
    made.inputs.shape.extend(call["shape"])
    made.inputs.dtype = call["dtype"]
    data = np.repeat(np.array(call["values"], "<f4"), 2).tobytes()
    made.inputs.data = data + b"\0" * call["bytes"] if call["bytes"] >= 0 else data[: call["bytes"]]
    if call["all_emissions"] is not None:
        made.all_emissions = call["all_emissions"]
    return stub.Predict.future(made, timeout=20)


def said(future: Any) -> Any:
    try:
        return future.result().SerializeToString(deterministic=True)
    except grpc.RpcError as error:
        trailing = dict(error.trailing_metadata())  # type: ignore[attr-defined]
        return error.code(), error.details(), trailing.get("cellar-error-bin")  # type: ignore[attr-defined]


@settings(max_examples=60)
@given(st.lists(predicts(), min_size=1, max_size=8))
def test_whole_sequences_answer_the_same(both: list[Running], calls: list[dict[str, Any]]) -> None:
    found = []
    for server in both:
        with grpc.insecure_channel(server.address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            found.append([said(future) for future in [ask_predict(stub, call) for call in calls]])
    assert found[0] == found[1]


def test_sequences_of_one_call_each_go_as_rows_and_share_runs(both: list[Running]) -> None:
    sound = {"model": "counter", "version": 0, "shape": [], "dtype": 0, "bytes": 0, "timeout_ms": 0, "is_bulk": False}
    calls = [
        {**sound, "values": [float(n + 1)] * (n % 7 + 1), "lengths": [], "all_emissions": n % 2 == 0} for n in range(50)
    ]
    server = both[1]
    (engine,) = [each for each in server.server.registry.engines.values() if each.name == "counter"]
    before, runs = counters(server)["rows"], engine.counters().runs
    with grpc.insecure_channel(server.address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        for n, future in enumerate([ask_predict(stub, call) for call in calls]):
            response = future.result()
            values = np.frombuffer(response.outputs.data, "<f4")[::2]
            sums = np.cumsum(calls[n]["values"])
            assert values.tolist() == (sums if n % 2 == 0 else sums[-1:]).tolist()
            assert list(response.lengths) == [len(values)]
    assert counters(server)["rows"] - before == 50
    assert engine.counters().runs - runs < 150
    assert engine.queue_rows == 0


def test_a_sequence_whose_caller_goes_is_dropped(both: list[Running]) -> None:
    server = both[1]
    (engine,) = [each for each in server.server.registry.engines.values() if each.name == "counter"]
    values = [1.0] * 200_000
    call = {"model": "counter", "version": 0, "shape": [], "dtype": 0, "bytes": 0, "timeout_ms": 0, "is_bulk": False}
    with grpc.insecure_channel(server.address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        futures = [
            ask_predict(stub, {**call, "values": values, "lengths": [], "all_emissions": None}) for _ in range(40)
        ]
        until = time.monotonic() + 10
        while not engine.queue_rows and time.monotonic() < until:
            time.sleep(0.001)
        for future in futures:
            future.cancel()

    def held() -> tuple[int, int, int]:
        return engine.queue_rows, counters(server)["live_calls"], len(server.server._grpc._calls)  # type: ignore[union-attr]

    until = time.monotonic() + 10
    while held() != (0, 0, 0) and time.monotonic() < until:
        time.sleep(0.01)
    assert held() == (0, 0, 0)
    assert engine.counters().refusals["CANCELLED"] >= 1


def test_calls_that_are_cut_leave_nothing(both: list[Running]) -> None:
    server = both[1]
    for _ in range(20):
        caller = Caller(server.address)
        caller.open("counter", 1)
        for number in range(WINDOW):
            caller.send(frame(caller.handles["counter"], [number], [[1.0]], frame_id=number))
        caller.call.cancel()
        caller.close()

    def held() -> tuple[int, int]:
        return counters(server)["live_calls"], len(server.server._grpc._calls)  # type: ignore[union-attr]

    until = time.monotonic() + 10
    while held() != (0, 0) and time.monotonic() < until:
        time.sleep(0.02)
    assert held() == (0, 0)


def test_a_build_that_its_sources_have_left_behind_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_native_stale()
    assert not is_native_stale(tmp_path / "no such folder")  # as where a wheel is installed
    for file in [*SOURCES.glob("*.h"), SOURCES / "module.cc"]:
        shutil.copy(file, tmp_path)
    assert not is_native_stale(tmp_path)
    with (tmp_path / "wire.h").open("a") as file:
        file.write("// edited\n")
    assert is_native_stale(tmp_path)
    monkeypatch.setattr(transport, "is_native_stale", lambda: True)
    with pytest.raises(StartupError, match="make native"):
        transport.open_transport("auto", max_message_bytes=1 << 20)
