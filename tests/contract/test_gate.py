"""Calls with one answer are bounded, and refused by what they would wait for the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from cellar_proto.v1 import inference_pb2 as pb
from cellar_proto.v1 import inference_pb2_grpc
from cellar_proto.v1.reason_pb2 import Error, Reason
from cellar_server.config import Config
from cellar_server.front.gate import CALLS, FEW, Gate
from cellar_server.front.status import ERROR_KEY
from cellar_server.sessions.core import RETRY_AFTER_MS, WAIT_PART

from tests.contract.conftest import Running
from tests.fakes.zoo import write_counter

LIMIT = 100


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """By grpc.aio: the native transport hands single steps and sequences over as rows, which its queue bounds."""
    zoo = tmp_path_factory.mktemp("zoo")
    write_counter(zoo)
    running = Running(Config(listen="127.0.0.1:0", transport="aio", models=zoo, max_calls_in_flight=LIMIT, drain_s=5))
    yield running
    running.stop()


@pytest.fixture
def inference(served: Running) -> Iterator[inference_pb2_grpc.InferenceStub]:
    with grpc.insecure_channel(served.address) as channel:
        yield inference_pb2_grpc.InferenceStub(channel)


@pytest.fixture
def busy(served: Running) -> Iterator[Gate]:
    """As many calls are in flight as may be."""
    gate = served.server.gate
    assert is_settled(gate)
    gate.in_flight = LIMIT
    yield gate
    gate.in_flight -= LIMIT


def is_settled(gate: Gate) -> bool:
    """No call is in flight any more; a caller hears of its end a moment before that."""
    until = time.monotonic() + 10
    while gate.in_flight and time.monotonic() < until:
        time.sleep(0.01)
    return gate.in_flight == 0


def error_of(call: Callable[[], object]) -> Error:
    """The error that a call ends with."""
    with pytest.raises(grpc.RpcError) as ended:
        call()
    return Error.FromString(dict(ended.value.trailing_metadata())[ERROR_KEY])  # type: ignore[attr-defined]


def predict(model: str = "counter") -> pb.PredictRequest:
    request = pb.PredictRequest(model=model)
    request.inputs.data = np.ones((1, 2), np.float32).tobytes()
    return request


def test_over_the_limit_a_call_is_told_when_to_come_again(
    busy: Gate, inference: inference_pb2_grpc.InferenceStub
) -> None:
    step = pb.StepRequest(session_id="a", inputs=predict().inputs)
    for call in (lambda: inference.Predict(predict(), timeout=10), lambda: inference.Step(step, timeout=10)):
        error = error_of(call)
        assert error.reason == Reason.OVERLOADED
        assert error.retry_after_ms > 0
    assert busy.in_flight == LIMIT  # what was refused does not count


def test_streams_are_bounded_by_their_own_limits(busy: Gate, inference: inference_pb2_grpc.InferenceStub) -> None:
    opens = pb.StreamRequest(open=pb.OpenSessions(model="counter", count=1))
    (reply,) = inference.Stream(iter([opens]), timeout=10)
    assert len(reply.opened.handles) == 1


def test_a_call_counts_until_it_is_over(served: Running, inference: inference_pb2_grpc.InferenceStub) -> None:
    reply = inference.Predict(predict(), timeout=10)
    assert np.frombuffer(reply.outputs.data, np.float32).tolist() == [1, 1]
    assert error_of(lambda: inference.Predict(predict("nobody"), timeout=10)).reason == Reason.MODEL_NOT_FOUND
    assert is_settled(served.server.gate)


def test_a_call_without_a_message_has_a_reason(served: Running) -> None:
    with grpc.insecure_channel(served.address) as channel:
        empty = channel.stream_unary(
            "/cellar.v1.Inference/Predict", pb.PredictRequest.SerializeToString, pb.PredictResponse.FromString
        )
        assert error_of(lambda: empty(iter([]), timeout=10)).reason == Reason.INVALID_REQUEST
    assert is_settled(served.server.gate)


def paced(s_per_call: float, in_flight: int) -> Gate:
    """A gate whose calls have ended at a pace, with so many left."""
    now = [0.0]
    gate = Gate(1000, clock=lambda: now[0])
    gate.in_flight = in_flight + 500
    for _ in range(500):
        now[0] += s_per_call
        gate.end()
    return gate


def test_a_call_is_refused_where_its_time_would_be_over() -> None:
    gate = paced(0.002, 200)
    wait_s = 200 * gate.s_per_call
    assert wait_s == pytest.approx(0.4, rel=0.02)
    assert gate.refusal(None) is None
    assert gate.refusal(wait_s / WAIT_PART * 1.01) is None
    error = gate.refusal(wait_s / WAIT_PART * 0.5)
    assert error is not None
    assert error.reason == Reason.OVERLOADED
    assert (
        RETRY_AFTER_MS < error.retry_after_ms <= RETRY_AFTER_MS + 1000 * wait_s / 2
    )  # it comes again before the queue is empty


def test_a_few_calls_wait_for_nobody() -> None:
    assert paced(1.0, FEW - 1).refusal(0.001) is None
    assert paced(1.0, FEW).refusal(0.001) is not None


def test_time_without_calls_is_no_pace() -> None:
    now = [0.0]
    gate = Gate(1000, clock=lambda: now[0])
    for _ in range(100):  # one call a minute, each over at once
        gate.in_flight += 1
        gate.end()
        now[0] += 60.0
    gate.in_flight = FEW
    assert gate.refusal(1.0) is None


def test_all_calls_of_inference_with_one_answer_are_meant() -> None:
    methods = pb.DESCRIPTOR.services_by_name["Inference"].methods
    single = {f"/cellar.v1.Inference/{m.name}" for m in methods if not m.client_streaming and not m.server_streaming}
    assert single | {"/inference.GRPCInferenceService/ModelInfer"} == CALLS
