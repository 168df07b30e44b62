"""Calls with one answer are bounded, and those that would come too late are refused before they are read."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.front.status import abort
from cellar_server.sessions.core import MAX_RETRY_MS, RETRY_AFTER_MS, WAIT_PART

CALLS = frozenset(
    ("/cellar.v1.Inference/Predict", "/cellar.v1.Inference/Step", "/inference.GRPCInferenceService/ModelInfer")
)
# So many calls at a time wait for nobody.
FEW = 64
# How much of the measured pace is that of older calls.
_MEMORY = 0.99


class Gate(grpc.aio.ServerInterceptor):
    """Counts the calls in flight and measures at which pace they end.

    The engines refuse what their queues cannot carry in time; this refuses what the transport cannot: calls that wait
    for the event loop, before it and after it. max_calls: in flight at a time. reads_late: the transport lets a handler
    begin before its call's message is read, so that refusing costs no reading. A call whose message has not come is not
    counted: whoever sends none keeps nobody out.
    """

    def __init__(self, max_calls: int, *, reads_late: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.in_flight = 0
        self._max_calls = max_calls
        self._reads_late = reads_late
        self._clock = clock
        self._ended_at: float | None = None  # the call before, after which some were in flight
        self._seconds, self._calls = 0.0, 1.0  # of the calls that ended lately, fading

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(details)
        if details.method not in CALLS or handler is None or handler.unary_unary is None:
            return handler
        answer, read, write = handler.unary_unary, handler.request_deserializer, handler.response_serializer

        async def counted(request: Any, context: grpc.aio.ServicerContext) -> Any:
            self.in_flight += 1
            try:
                return await answer(request, context)
            finally:
                self.end()

        async def admit(request: Any, context: grpc.aio.ServicerContext) -> Any:
            error = self.refusal(context.time_remaining())
            if error is not None:
                await abort(context, error)
            return await counted(request, context)

        async def admit_unread(_: Any, context: grpc.aio.ServicerContext) -> Any:
            error = self.refusal(context.time_remaining())
            if error is not None:
                await abort(context, error)
            request = await context.read()
            if request is grpc.aio.EOF:
                await abort(context, CellarError(Reason.INVALID_REQUEST, "the call holds no message"))
            return await counted(request, context)

        if self._reads_late:
            return grpc.stream_unary_rpc_method_handler(admit_unread, read, write)
        return grpc.unary_unary_rpc_method_handler(admit, read, write)

    def refusal(self, left_s: float | None) -> CellarError | None:
        """Why a call may not come now; None where it may. left_s: until its deadline, None for none."""
        if self.in_flight >= self._max_calls:
            return self._overloaded(self.in_flight * self.s_per_call / 2)
        if left_s is None or self.in_flight < FEW:
            return None
        wait_s = self.in_flight * self.s_per_call
        if wait_s <= WAIT_PART * left_s:
            return None
        # at the latest when half of what waits is answered, so that the queue is never empty meanwhile
        return self._overloaded(min(wait_s - WAIT_PART * left_s, wait_s / 2))

    @property
    def s_per_call(self) -> float:
        """Seconds between two ends of calls, lately."""
        return self._seconds / self._calls

    def end(self) -> None:
        """A call is over."""
        self.in_flight -= 1
        now = self._clock()
        if self._ended_at is not None:
            self._seconds = _MEMORY * self._seconds + (now - self._ended_at)
            self._calls = _MEMORY * self._calls + 1
        self._ended_at = now if self.in_flight else None

    def _overloaded(self, wait_s: float) -> CellarError:
        delay_ms = min(RETRY_AFTER_MS + int(1000 * wait_s), MAX_RETRY_MS)
        return CellarError(Reason.OVERLOADED, f"{self.in_flight} calls are in flight", retry_after_ms=delay_ms)
