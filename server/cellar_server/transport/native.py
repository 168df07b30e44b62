"""The native transport: C++ moves the messages, and hands them over a batch at a time (see server/native/).

Handlers are grpc.aio's and run on the event loop as there. Messages that hold one chunk may come as rows in a lane
instead, many in one batch, and are answered in batches.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn

import grpc
from cellar_proto.v1.reason_pb2 import Error, Reason

from cellar_server.transport import _native  # type: ignore[attr-defined]
from cellar_server.transport.base import OPTIONS

log = logging.getLogger("cellar_server.transport")

Bell = _native.Bell

# The kinds of event, and how a method's requests come in, as in transport.h.
OPEN, MESSAGE, HALF_CLOSE, WRITTEN, DONE, ROWS = range(6)
STREAM, SINGLE, STEP, PREDICT = range(4)
# The lane of unary calls; streams are given others.
UNARY = 0

EOF = grpc.aio.EOF
Metadata = Sequence[tuple[str, str | bytes]]


class NativeCall:
    """One RPC: what a handler sees of it, as a grpc.aio.ServicerContext. Use on the event loop only."""

    def __init__(self, transport: Any, event: tuple[Any, ...]) -> None:
        _, self.number, _, _, self.method, self._peer, metadata, identity, left_s = event
        self._transport = transport
        self._metadata = tuple(
            (key, value if key.endswith("-bin") else value.decode("latin-1")) for key, value in metadata
        )
        self._identity: dict[str, list[bytes]] = {}
        for key, value in identity:
            self._identity.setdefault(key, []).append(value)
        self._deadline = None if left_s < 0 else time.monotonic() + left_s
        self._messages: deque[bytes] = deque()
        self._is_half_closed = False
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()
        self._trailing: Metadata = ()
        self._code, self._details = grpc.StatusCode.OK, ""
        self._is_finished = self._is_cancelled = False
        self._has_lane = False
        self.task: asyncio.Task[None] | None = None
        self.deserialize: Callable[[bytes], Any] = bytes
        self.serialize: Callable[[Any], bytes] = bytes

    # -- what it is ----------------------------------------------------------------------------------------------

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

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
        """The next message, or EOF."""
        while not self._messages:
            if self._is_half_closed:
                return EOF
            if not self._has_lane:
                self._transport.read(self.number)
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self.parse(self._messages.popleft())

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
        if self.done() or not self._transport.write(self.number, self.serialize(message), 0, True):
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
        pairs = [(key, value if isinstance(value, bytes) else value.encode()) for key, value in trailing]
        self._transport.finish(self.number, message, code.value[0], details, pairs)

    # -- a stream of rows ----------------------------------------------------------------------------------------

    def open_lane(self, lane: int, stream: int, window: int) -> None:
        """Frames of one row come in a lane from now on, with the stream's number, and `read` gives the others. Each of
        these must be settled."""
        self._has_lane = True
        self._transport.open_lane(self.number, lane, stream, window)

    def settle(self, messages: int, rows: int = 0) -> None:
        """So many messages that `read` gave, or rows that were not answered as rows, are dealt with."""
        if self._has_lane:
            self._transport.settle(self.number, messages, rows)

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


class NativeServer:
    """See Transport. Threads: the transport's poller, and one here that waits for its batches."""

    def __init__(self, *, max_message_bytes: int, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> None:
        self.transport = _native.Transport(max_message_bytes, list(OPTIONS))
        self._interceptors = list(interceptors)
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self._generic: list[grpc.GenericRpcHandler] = []
        self._takers: dict[int, Callable[[], object]] = {}
        self._styles: dict[str, int] = {}  # of methods whose only message becomes a row
        self._cancel: Callable[[list[int]], object] = lambda numbers: None
        self._calls: dict[int, NativeCall] = {}
        self._is_listening = False
        self._taking: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._generic.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, Any]) -> None:
        for name, handler in method_handlers.items():
            path = f"/{service_name}/{name}"
            self._handlers[path] = handler
            style = STREAM if handler.request_streaming else SINGLE
            self.transport.add_method(path, self._styles.get(path, style))

    def add_lane(self, lane: int, take: Callable[[], object]) -> None:
        """`take` is called, on the transport's thread, when rows wait in a lane that was empty and has no bell."""
        self._takers[lane] = take

    def add_unary(
        self, styles: dict[str, int], take: Callable[[], object], cancel: Callable[[list[int]], object]
    ) -> None:
        """The only message of these methods, STEP or PREDICT, becomes a row in the lane of unary calls. cancel: is
        told, on the event loop, of such calls that are gone."""
        self._styles = styles
        self._cancel = cancel
        self.add_lane(UNARY, take)
        for method, style in styles.items():
            self.transport.add_method(method, style)

    def add_insecure_port(self, address: str) -> int:
        return self._listen(address, _native.insecure())

    def add_certificates_port(self, address: str, certificates: Any) -> int:
        """As `add_insecure_port`, with the TLS certificates of `_native.Certificates`."""
        return self._listen(address, certificates)

    def _listen(self, address: str, credentials: Any) -> int:
        if self._is_listening:
            raise RuntimeError("it listens on one address")
        self._is_listening = True
        return self.transport.listen(address, credentials)

    async def start(self) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._taking = threading.Thread(target=self._take, args=(loop,), name="transport", daemon=True)
        self.transport.start()
        self._taking.start()

    async def stop(self, grace: float | None) -> None:
        loop = asyncio.get_running_loop()
        if self._taking is None:
            self.transport.shutdown(0.0)
            return
        await loop.run_in_executor(None, self.transport.shutdown, grace or 0.0)
        await loop.run_in_executor(None, self._taking.join)
        tasks = [call.task for call in self._calls.values() if call.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        assert self._ended is not None
        done, _ = await asyncio.wait([self._ended], timeout=timeout)
        return bool(done)

    # -- events --------------------------------------------------------------------------------------------------

    def _take(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hands over what comes, in its order: rows to their lanes, the rest to the event loop."""
        take, takers = self.transport.take, self._takers
        while (events := take()) is not None:
            others = []
            for event in events:
                if event[0] != ROWS:
                    others.append(event)
                    continue
                try:
                    takers[event[1]]()
                except Exception:
                    log.exception("rows could not be taken")
            if others:
                loop.call_soon_threadsafe(self._receive, others)

    def _receive(self, events: list[tuple[Any, ...]]) -> None:
        calls, gone = self._calls, []
        for event in events:
            kind, number = event[0], event[1]
            if kind == OPEN:
                call = calls[number] = NativeCall(self.transport, event)
                call.task = asyncio.ensure_future(self._serve(call, event[3] if event[2] else None))
                # not at the end of the task: one that is cancelled before its first step never gets there
                call.task.add_done_callback(lambda _, number=number: calls.pop(number))
                continue
            known = calls.get(number)
            if known is not None:
                known.receive(kind, event[3], event[2])
            elif kind == DONE and not event[2]:
                gone.append(number)
        if gone:
            self._cancel(gone)

    async def _serve(self, call: NativeCall, request: bytes | None) -> None:
        try:
            handler = await self._find(call)
            if handler is None:
                call.finish(grpc.StatusCode.UNIMPLEMENTED, f"there is no method {call.method}")
                return
            await _run(handler, call, request)
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            call.finish(grpc.StatusCode.CANCELLED, "the call was cancelled")
        except Exception:
            log.exception("%s failed", call.method)
            call.finish(grpc.StatusCode.INTERNAL, "the server failed; its log has the fault")

    async def _find(self, call: NativeCall) -> grpc.RpcMethodHandler | None:
        details = _Details(call.method, call.invocation_metadata())

        async def found(given: Any) -> grpc.RpcMethodHandler | None:
            handler = self._handlers.get(given.method)
            for generic in self._generic if handler is None else ():
                handler = handler or generic.service(given)
            return handler

        continuation = found
        for interceptor in reversed(self._interceptors):
            continuation = _wrapped(interceptor, continuation)
        return await continuation(details)


class _Details(grpc.HandlerCallDetails):
    def __init__(self, method: str, invocation_metadata: Metadata) -> None:
        self.method = method
        self.invocation_metadata = invocation_metadata


def _wrapped(interceptor: Any, continuation: Any) -> Any:
    async def intercept(details: Any) -> Any:
        return await interceptor.intercept_service(continuation, details)

    return intercept


async def _run(handler: grpc.RpcMethodHandler, call: NativeCall, request: bytes | None) -> None:
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
