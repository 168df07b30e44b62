"""The transport that needs no compiler: grpc.aio. Messages that hold one chunk become rows here too (see rows.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from inspect import iscoroutinefunction
from typing import Any

import grpc

from cellar_server.bell import Bell
from cellar_server.transport.aio_call import AioCall, ask
from cellar_server.transport.aio_stream import AioStream
from cellar_server.transport.base import OPTIONS, SINGLE, UNARY
from cellar_server.transport.gathering import Gathering
from cellar_server.transport.rows import NEVER, End, RowTransport

# Streams that may be read ahead.
STREAM_METHODS = ("/cellar.v1.Inference/Stream", "/inference.GRPCInferenceService/ModelStreamInfer")


Offer = Callable[[int, bytes, str, float], bool]


class AioServer(grpc.aio.ServerInterceptor):
    """See Transport. A grpc.aio server whose methods are all found by name: of methods that are registered, it would
    wait for a call of each one anew whenever one comes."""

    name = "aio"
    bell, end = Bell, End
    is_threaded = False

    def __init__(self, *, max_message_bytes: int, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> None:
        sizes = [("grpc.max_receive_message_length", max_message_bytes), ("grpc.max_send_message_length", -1)]
        first, others = list(interceptors[:1]), list(interceptors[1:])
        self._server = grpc.aio.server(options=[*sizes, *OPTIONS], interceptors=[*first, self, *others])
        self.add_insecure_port = self._server.add_insecure_port
        self.add_secure_port = self._server.add_secure_port
        self.add_generic_rpc_handlers = self._server.add_generic_rpc_handlers
        self.start, self.stop = self._server.start, self._server.stop
        self.wait_for_termination = self._server.wait_for_termination
        self.transport = RowTransport(asyncio.get_running_loop())
        self._has_lanes = False
        self._styles: dict[str, int] = {}  # of methods whose only message becomes a row
        self._gathering = Gathering(asyncio.get_running_loop())
        self._cancel: Callable[[list[int]], object] = lambda numbers: None
        self._offers: dict[str, Offer] = {}
        self._made: dict[str, tuple[Any, Any]] = {}

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, Any]) -> None:
        """They are among the generic ones."""

    def add_lane(self, lane: int, take: Callable[[], object]) -> None:
        """`take` is called, on the event loop, when rows wait in a lane that has no bell."""
        self._has_lanes = True
        self.transport.add_lane(lane, take)

    def add_unary(
        self, styles: dict[str, int], take: Callable[[], object], cancel: Callable[[list[int]], object]
    ) -> None:
        """See NativeServer."""
        self._styles, self._cancel = styles, cancel
        self._gathering.take = take
        self.transport.set_bell(UNARY, self._gathering)

    def offer(self, method: str, take: Offer) -> None:
        """See Transport."""
        self._offers[method] = take

    def answer(self, number: int, response: bytes | None, end: Any) -> None:
        """See Transport."""
        self.transport.deliver([(number, end if response is None else response, 1)])

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(details)
        style = self._styles.get(details.method)
        # a stream that is refused gets a generator, which reads nothing
        is_stream = details.method in STREAM_METHODS and self._has_lanes and iscoroutinefunction(handler.stream_stream)
        offered = self._offers.get(details.method)
        if style is None and offered is None and not is_stream:
            return handler
        known = self._made.get(details.method)
        if known is None or known[0] is not handler:
            made = self._stream(handler) if is_stream else self._unary(handler, style, offered)
            known = self._made[details.method] = handler, made
        return known[1]

    def _unary(self, handler: Any, style: int | None, offered: Offer | None) -> grpc.RpcMethodHandler:
        """The same on bytes, which go as rows, or to whom they are offered, where they can."""
        behave, parse, serialize = handler.unary_unary, handler.request_deserializer, handler.response_serializer

        def offer(call: AioCall, message: bytes, deadline_s: float) -> bool:
            assert offered is not None
            return offered(call.number, message, call.peer, 0.0 if deadline_s == NEVER else deadline_s)

        gathering = self._gathering
        take = self.transport.post_call if offered is None else offer

        async def serve(message: bytes, context: grpc.aio.ServicerContext) -> bytes:
            gathering.asking += offered is None
            try:
                response = await ask(
                    self.transport, SINGLE if style is None else style, message, context, self._cancel, take
                )
            finally:
                gathering.asking -= offered is None
            return serialize(await behave(parse(message), context)) if response is None else response

        return grpc.unary_unary_rpc_method_handler(serve)

    def _stream(self, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        """The same on bytes, its context one that knows rows."""

        behave: Any = handler.stream_stream

        async def serve(requests: Any, context: grpc.aio.ServicerContext) -> None:
            stream = AioStream(self.transport, context, handler.request_deserializer, handler.response_serializer)
            try:
                await behave(requests, stream)
            finally:
                stream.close()

        return grpc.stream_stream_rpc_method_handler(serve)
