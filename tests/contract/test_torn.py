"""Messages that are no protobuf: a Reason, and a stream goes on."""

from __future__ import annotations

import queue

import grpc
import pytest
from cellar_proto.v1.inference_pb2 import OpenSessions, StreamRequest, StreamResponse
from cellar_proto.v1.reason_pb2 import Error, Reason
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
    assert Error.FromString(metadata[ERROR_KEY]).reason == Reason.MODEL_NOT_FOUND  # an empty request names no model


def test_a_torn_message_on_a_stream_is_refused_and_the_stream_goes_on(channel: grpc.Channel) -> None:
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    call = channel.stream_stream("/cellar.v1.Inference/Stream", response_deserializer=StreamResponse.FromString)
    answers = call(iter(outbox.get, None), timeout=20)
    outbox.put(TORN)
    assert next(answers).frame_error.error.reason == Reason.INVALID_REQUEST
    outbox.put(StreamRequest(open=OpenSessions(frame_id=7, model="counter", count=1)).SerializeToString())
    assert next(answers).opened.frame_id == 7
    outbox.put(None)
