"""The native transport: C++ moves the messages, and hands them over a batch at a time (see server/native/).

Handlers are grpc.aio's and run on the event loop as there. Messages that hold one chunk may come as rows in a lane
instead, many in one batch, and are answered in batches.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from cellar_server.transport import _native
from cellar_server.transport.base import OPTIONS, SINGLE, STREAM, UNARY
from cellar_server.transport.native_call import DONE, MESSAGE, OPEN, ROWS, Metadata, NativeCall, run

log = logging.getLogger("cellar_server.transport")


class NativeServer:
    """See Transport. Threads: the transport's poller, and one here that waits for its batches."""

    name = "native"
    bell, end = _native.Bell, _native.End
    is_threaded = True

    def __init__(self, *, max_message_bytes: int, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> None:
        self.transport = _native.Transport(max_message_bytes, list(OPTIONS))
        self._interceptors = list(interceptors)
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self._generic: list[grpc.GenericRpcHandler] = []
        self._takers: dict[int, Callable[[], object]] = {}
        self._styles: dict[str, int] = {}  # of methods whose only message becomes a row
        self._cancel: Callable[[list[int]], object] = lambda numbers: None
        self._offers: dict[str, Callable[[int, bytes, str, float], bool]] = {}  # by method
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

    def offer(self, method: str, take: Callable[[int, bytes, str, float], bool]) -> None:
        """See Transport."""
        self._offers[method] = take

    def answer(self, number: int, response: bytes | None, end: Any) -> None:
        """See Transport."""
        self.transport.finish(number, response, end)

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
        while events := take():  # none: it has ended
            others = []
            for event in events:
                try:
                    if event[0] == ROWS:
                        takers[event[1]]()
                    elif not self._is_taken(event):
                        others.append(event)
                except Exception:
                    log.exception("what came could not be taken")
                    if event[0] != ROWS:
                        others.append(event)
            if others:
                loop.call_soon_threadsafe(self._receive, others)

    def _is_taken(self, event: tuple[Any, ...]) -> bool:
        """Whether somebody took a message to whom they are offered first."""
        kind, number, is_ok, message, about = event
        if kind == MESSAGE:
            call = self._calls.get(number)
            return call is not None and call.offer(message)
        if kind != OPEN or not is_ok or message is None or about[0] not in self._offers:
            return False
        return self._offers[about[0]](number, message, about[1], 0.0 if about[2] == math.inf else about[2])

    def _receive(self, events: list[tuple[Any, ...]]) -> None:
        calls, gone = self._calls, []
        for event in events:
            kind, number = event[0], event[1]
            if kind == OPEN:
                call = calls[number] = NativeCall(self.transport, number, event[4])
                call.task = asyncio.ensure_future(self._serve(call, event[3] if event[2] else None))
                # not at the end of the task: one that is cancelled before its first step never gets there
                call.task.add_done_callback(lambda _, number=number: calls.pop(number))  # type: ignore[misc]
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
            await run(handler, call, request)
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
        self.invocation_metadata = invocation_metadata  # type: ignore[assignment]  # a sequence, as in grpc.aio


def _wrapped(interceptor: Any, continuation: Any) -> Any:
    async def intercept(details: Any) -> Any:
        return await interceptor.intercept_service(continuation, details)

    return intercept
