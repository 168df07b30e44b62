"""gRPC for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

import grpc
from cellar_proto.v1.inference_pb2 import StreamRequest

from cellar_client.credentials import Credentials
from cellar_client.errors import Cancelled, CellarError, Unavailable, ended
from cellar_client.transport import Metadata, Wire


class Tasks:
    """The transport of the asynchronous client."""

    def connect(self, credentials: Credentials, address: str, options: Sequence[tuple[str, Any]]) -> Any:
        return credentials.connect(grpc.aio, address, options)

    async def close(self, channel: grpc.aio.Channel) -> None:
        await channel.close()

    async def call(self, method: Any, request: Any, **options: Any) -> Any:
        return await method(request, **options)

    def messages(self, call: AsyncIterable[Any]) -> AsyncIterator[Any]:
        return aiter(call)

    async def next(self, messages: AsyncIterator[Any]) -> Any:
        try:
            return await anext(messages, None)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Cancelled("the call was cancelled") from None  # by `close`, and not the task that waits

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def wire(self, stub: Any, metadata: Metadata) -> Wire:
        return TaskWire(stub, metadata)


class TaskWire(Wire):
    """A stream that a task of its own reads."""

    def __init__(self, stub: Any, metadata: Metadata = ()) -> None:
        super().__init__()
        self._call = stub.Stream(metadata=metadata)
        self._writing = asyncio.Lock()
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        error: CellarError = Unavailable("the stream has ended")
        was_live = False
        try:
            async for response in self._call:
                was_live = True
                self._hand_out(response)
        except grpc.RpcError as failure:
            error = ended(failure, was_live=was_live)
        except asyncio.CancelledError:
            error = Unavailable("the stream was left")
            if not self._call.cancelled():
                raise
        finally:  # whoever waits for an answer learns of it, however the stream ends
            self._end(error)

    def inbox(self) -> asyncio.Queue[Any]:
        return asyncio.Queue()

    async def send(self, frame_id: int, request: StreamRequest, inbox: asyncio.Queue[Any]) -> None:
        self._expect(frame_id, inbox)
        try:
            async with self._writing:
                await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError):
            await self._reader
            raise (self.error or Unavailable("the stream has ended")) from None

    async def _get(self, inbox: asyncio.Queue[Any], timeout_s: float) -> Any:
        return await asyncio.wait_for(inbox.get(), timeout_s)

    def cancel(self) -> None:
        self._call.cancel()

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
