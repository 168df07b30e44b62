"""gRPC for threads: every coroutine here blocks, and none suspends."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from cellar_proto.v1.inference_pb2 import StreamRequest

from cellar_client.credentials import Credentials
from cellar_client.errors import CellarError, Unavailable, ended
from cellar_client.transport import Metadata, Wire


class Threads:
    """The transport of the synchronous client."""

    def connect(self, credentials: Credentials, address: str, options: Sequence[tuple[str, Any]]) -> Any:
        return credentials.connect(grpc, address, options)

    async def close(self, channel: grpc.Channel) -> None:
        channel.close()

    async def call(self, method: Any, request: Any, **options: Any) -> Any:
        return method(request, **options)

    def messages(self, call: Iterator[Any]) -> Iterator[Any]:
        return call

    async def next(self, messages: Iterator[Any]) -> Any:
        return next(messages, None)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def wire(self, stub: Any, metadata: Metadata) -> Wire:
        return ThreadWire(stub, metadata)


class ThreadWire(Wire):
    """A stream that a thread of its own reads; messages go out through a queue."""

    def __init__(self, stub: Any, metadata: Metadata = ()) -> None:
        super().__init__()
        self._outbox: queue.SimpleQueue[StreamRequest | None] = queue.SimpleQueue()
        self._call = stub.Stream(iter(self._outbox.get, None), metadata=metadata)
        self._reader = threading.Thread(target=self._read, daemon=True, name="cellar-stream")
        self._reader.start()

    def _read(self) -> None:
        error: CellarError = Unavailable("the stream has ended")
        was_live = False
        try:
            for response in self._call:
                was_live = True
                self._hand_out(response)
        except grpc.RpcError as failure:
            error = ended(failure, was_live=was_live)
        self._end(error)

    def inbox(self) -> queue.SimpleQueue[Any]:
        return queue.SimpleQueue()

    async def send(self, frame_id: int, request: StreamRequest, inbox: queue.SimpleQueue[Any]) -> None:
        self._expect(frame_id, inbox)
        self._outbox.put(request)

    async def _get(self, inbox: queue.SimpleQueue[Any], timeout_s: float) -> Any:
        try:
            return inbox.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None

    def cancel(self) -> None:
        self._outbox.put(None)
        self._call.cancel()

    async def close(self) -> None:
        """What is unanswered may still be answered for half a second; nobody waits for it."""
        self._outbox.put(None)
        self._reader.join(0.5)
        self._call.cancel()
        self._reader.join(5)
