"""Messages that are no protobuf: their call ends with a Reason."""

from __future__ import annotations

import queue

import grpc
import pytest
from cellar_proto.v1.inference_pb2 import OpenSessions, StreamRequest, StreamResponse
from cellar_proto.v1.reason_pb2 import Error, Reason
from cellar_server.front.oip import schema
from cellar_server.front.status import ERROR_KEY

TORN = b"\x0a\xff\xff\xff\xff\x0f"


@pytest.mark.parametrize(
    "method",
    ["cellar.v1.Inference/Predict", "cellar.v1.Sessions/OpenSession", "cellar.v1.Models/ListModels"],
)
def test_a_torn_call_is_refused_with_a_reason(channel: grpc.Channel, method: str) -> None:
    call = channel.unary_unary("/" + method)
    with pytest.raises(grpc.RpcError) as caught:
        call(TORN, timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    metadata = dict(caught.value.trailing_metadata())  # type: ignore[attr-defined]
    assert Error.FromString(metadata[ERROR_KEY]).reason == Reason.INVALID_REQUEST


def test_a_torn_generation_is_refused_with_a_reason(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream("/cellar.v1.Inference/Generate")(TORN, timeout=10))
    metadata = dict(caught.value.trailing_metadata())  # type: ignore[attr-defined]
    assert Error.FromString(metadata[ERROR_KEY]).reason == Reason.INVALID_REQUEST


@pytest.mark.parametrize("opens", [False, True])
def test_a_torn_message_ends_its_stream_with_a_reason(channel: grpc.Channel, opens: bool) -> None:
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    call = channel.stream_stream("/cellar.v1.Inference/Stream", response_deserializer=StreamResponse.FromString)
    answers = call(iter(outbox.get, None), timeout=20)
    if opens:
        outbox.put(StreamRequest(open=OpenSessions(frame_id=7, model="counter", count=1)).SerializeToString())
        assert next(answers).opened.frame_id == 7
    outbox.put(TORN)
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    metadata = dict(caught.value.trailing_metadata())  # type: ignore[attr-defined]
    assert Error.FromString(metadata[ERROR_KEY]).reason == Reason.INVALID_REQUEST
    outbox.put(None)


def test_a_torn_request_of_the_open_protocol_is_refused_on_its_stream(channel: grpc.Channel) -> None:
    call = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=schema.ModelStreamInferResponse.FromString,
    )
    (answer,) = call(iter([TORN]), timeout=20)
    assert answer.error_message.startswith("INVALID_REQUEST")
