"""Messages that are no protobuf: they get a Reason like everything else that cannot be read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from cellar_proto.v1.reason_pb2 import Reason
from google.protobuf.message import DecodeError

from cellar_server.errors import CellarError
from cellar_server.front.status import abort

_OURS = ("/cellar.v1.", "/inference.")


class Reader(grpc.aio.ServerInterceptor):
    """Reads the messages of our services. A torn one ends a unary call with INVALID_REQUEST; streams and generations
    get None in its place, and end themselves (`check`). Without this the transport ends the call with a bare code."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.startswith(_OURS):
            return handler
        if handler.request_streaming or handler.response_streaming:
            read = _reading(handler.request_deserializer)
            if handler.request_streaming and handler.response_streaming:
                return grpc.stream_stream_rpc_method_handler(handler.stream_stream, read, handler.response_serializer)
            if handler.request_streaming:
                return grpc.stream_unary_rpc_method_handler(handler.stream_unary, read, handler.response_serializer)
            return grpc.unary_stream_rpc_method_handler(handler.unary_stream, read, handler.response_serializer)

        async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
            try:
                check(request)
            except CellarError as error:
                await abort(context, error)
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            answer, _reading(handler.request_deserializer), handler.response_serializer
        )


def check(request: Any) -> None:
    """CellarError INVALID_REQUEST for a message that could not be read."""
    if request is None:
        raise CellarError(Reason.INVALID_REQUEST, "the message cannot be read")


def _reading(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """The same, with None in place of what cannot be read."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return None

    return read
