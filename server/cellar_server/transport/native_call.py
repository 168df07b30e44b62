"""A call on the native transport, as its handler sees it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn

import grpc
from cellar_proto.v1.reason_pb2 import Error, Reason

from cellar_server.transport import _native

# The kinds of event, as in incoming.h.
OPEN, MESSAGE, HALF_CLOSE, WRITTEN, DONE, ROWS = range(6)

EOF = grpc.aio.EOF
Metadata = Sequence[tuple[str, str | bytes]]


class NativeCall:
    """One RPC: what a handler sees of it, as a grpc.aio.ServicerContext. Use on the event loop only, but for `offer`
    and `answer`."""

    is_threaded = True

    def __init__(self, transport: Any, number: int, about: tuple[Any, ...]) -> None:
        self.number = number
        self.method, self._peer, self._deadline_s, metadata, identity = about
        self._transport = transport
        self._metadata = tuple(
            (key, value if key.endswith("-bin") else value.decode("latin-1")) for key, value in metadata
        )
        self._identity: dict[str, list[bytes]] = {}
        for key, value in identity:
            self._identity.setdefault(key, []).append(value)
        self._messages: deque[bytes] = deque()
        self._is_half_closed = False
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()
        self._trailing: Metadata = ()
        self._code, self._details = grpc.StatusCode.OK, ""
        self._is_finished = self._is_cancelled = False
        self._is_read_ahead = False
        self._take: Callable[[bytes], bool] | None = None
        self._num_told = 0  # messages that nobody took, which `read` gives; counted where they come
        self._num_given, self._num_done = 0, 0  # by `read`, and before that
        self.task: asyncio.Task[None] | None = None
        self.deserialize: Callable[[bytes], Any] = bytes
        self.serialize: Callable[[Any], bytes] = bytes

    # -- what it is ----------------------------------------------------------------------------------------------

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def time_remaining(self) -> float | None:
        return None if self._deadline_s == math.inf else max(0.0, self._deadline_s - time.monotonic())

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._identity

    def cancelled(self) -> bool:
        return self._is_cancelled

    def done(self) -> bool:
        return self._is_finished or self._is_cancelled

    # -- messages ------------------------------------------------------------------------------------------------

    async def read(self) -> Any:
        """The next message, or EOF. Who asks for it has begun with those before."""
        while True:
            self._num_done = self._num_given
            while not self._messages:
                if self._is_half_closed:
                    return EOF
                if not self._is_read_ahead:
                    self._transport.read(self.number)
                self._reader = asyncio.get_running_loop().create_future()
                await self._reader
            message = self._messages.popleft()
            self._num_given += 1
            # it may have waited for one before it alone
            if not self._is_taken(message):
                return self.parse(message)

    def parse(self, message: bytes) -> Any:
        """A request; ends the call with INVALID_REQUEST where it is none."""
        try:
            return self.deserialize(message)
        except Exception:
            self._refuse("the message cannot be parsed")

    def _refuse(self, what: str) -> NoReturn:
        error = Error(reason=Reason.INVALID_REQUEST, message=what)
        self.finish(grpc.StatusCode.INVALID_ARGUMENT, what, (("cellar-error-bin", error.SerializeToString()),))
        raise grpc.aio.AbortError(what)

    async def requests(self) -> AsyncIterator[Any]:
        """Messages until their end."""
        while (message := await self.read()) is not EOF:
            yield message

    async def write(self, message: Any) -> None:
        """Sends a message; returns when the transport took it in, so a slow reader makes its writer wait."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.done() or not self._transport.write(self.number, self.serialize(message), 0):
            raise asyncio.CancelledError
        self._writers.append(written)
        await written

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        raise NotImplementedError("initial metadata are sent with the first message")

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        self._trailing = trailing_metadata

    def trailing_metadata(self) -> Metadata:
        return self._trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        self.finish(code, details, trailing_metadata or self._trailing)
        raise grpc.aio.AbortError(details)

    def finish(
        self, code: grpc.StatusCode, details: str, trailing: Metadata = (), message: bytes | None = None
    ) -> None:
        """Ends the call, once."""
        if self._is_finished:
            return
        self._is_finished = True
        self._transport.finish(self.number, message, _native.End(code.value[0], details, list(trailing)))

    # -- a stream that is read ahead -----------------------------------------------------------------------------

    def open_lane(self, lane: int, stream: int, window: int) -> None:
        """Frames of one row come in a lane from now on, with the stream's number, and `read` gives the others. Each of
        these must be settled."""
        self._is_read_ahead = True
        self._transport.open_lane(self.number, lane, stream, window)

    def settle(self, messages: int, rows: int = 0) -> None:
        """So many messages that `read` gave, or rows that were not answered as rows, are dealt with."""
        if self._is_read_ahead:
            self._transport.settle(self.number, messages, rows)

    def read_ahead(self, window: int, take: Callable[[bytes], bool] | None = None) -> None:
        """Messages come before `read` asks for them, while fewer than `window` are open. take: is offered each of them
        first, and says whether it took it: on the transport's thread, or the event loop while `read` has others to
        give. What it took is settled by `answer`, all else by `settle`."""
        self._is_read_ahead = True
        self._take = take
        self._transport.read_ahead(self.number, window)

    def offer(self, message: bytes) -> bool:
        """Whether a message that came was taken; on the transport's thread."""
        if self._num_told == self._num_done and self._is_taken(message):
            return True
        self._num_told += 1
        return False

    def _is_taken(self, message: bytes) -> bool:
        if self._take is None or not self._take(message):
            return False
        self._transport.settle(self.number, 1, -1)
        return True

    def answer(self, message: bytes) -> None:
        """Sends the answer to a message that was taken, which is settled once it is written; to any other behind
        `settle(1, -1)`. From any thread; returns at once."""
        self._transport.write(self.number, message, 1)

    # -- events, from the transport ------------------------------------------------------------------------------

    def receive(self, kind: int, message: bytes | None, is_ok: bool) -> None:
        if kind == MESSAGE:
            assert message is not None
            self._messages.append(message)
            _wake(self._reader)
        elif kind == HALF_CLOSE:
            self._is_half_closed = True
            _wake(self._reader)
        elif kind == WRITTEN and self._writers:
            _wake(self._writers.popleft())
        elif kind == DONE:
            self._is_cancelled = not is_ok
            self._is_half_closed = True  # nothing more comes, whoever ended it
            _wake(self._reader)
            if not is_ok and self.task is not None:
                self.task.cancel()


async def run(handler: grpc.RpcMethodHandler, call: NativeCall, request: bytes | None) -> None:
    """Runs a handler of any kind to the end of its call."""
    call.deserialize = handler.request_deserializer or bytes
    call.serialize = handler.response_serializer or bytes
    given: Any
    if handler.request_streaming:
        given = call.requests()
    elif request is not None:
        given = call.parse(request)
    else:
        call.finish(grpc.StatusCode.INVALID_ARGUMENT, "the call brought no message")
        return
    name = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    result = getattr(handler, name)(given, call)
    last = None
    if hasattr(result, "__aiter__"):
        async for message in result:
            await call.write(message)
    else:
        answer = await result
        if not handler.response_streaming:
            last = call.serialize(answer)
    call.finish(
        call.code(), call.details(), call.trailing_metadata(), last if call.code() is grpc.StatusCode.OK else None
    )


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
