"""What the clients' verbs need of gRPC: calls, pauses, and streams whose answers find who waits for them."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from cellar_proto.v1.inference_pb2 import StreamRequest, StreamResponse

from cellar_client.credentials import Credentials
from cellar_client.errors import CellarError, DeadlineExceeded, from_error

Metadata = Sequence[tuple[str, str]]


class Transport(Protocol):
    """How a client calls and waits. Its coroutines suspend (`Tasks`) or block the thread and never suspend
    (`Threads`); both raise grpc.RpcError, and what to do about it is decided above."""

    def connect(self, credentials: Credentials, address: str, options: Sequence[tuple[str, Any]]) -> Any:
        """A channel to an address."""

    async def close(self, channel: Any) -> None:
        """Ends a channel, and all that goes on in it."""

    async def call(self, method: Any, request: Any, **options: Any) -> Any:
        """The answer to a unary call; options: timeout, metadata, wait_for_ready."""

    def messages(self, call: Any) -> Any:
        """What `next` takes of a call whose answer is many messages."""

    async def next(self, messages: Any) -> Any:
        """The next message; None behind the last."""

    async def pause(self, seconds: float) -> None:
        """Waits."""

    def wire(self, stub: Any, metadata: Metadata) -> Wire:
        """A new Stream call."""


class Wire(ABC):
    """One Stream call: messages go out, answers come to the inbox of whoever waits for their frame, as (kind, number of
    the frame, message), or the CellarError that ended the stream. `error`: that one, None while it goes on."""

    def __init__(self) -> None:
        self._waiting: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._number = 0
        self.error: CellarError | None = None

    def next_id(self) -> int:
        """A number that no other frame of this stream has."""
        with self._lock:
            self._number += 1
            return self._number

    @abstractmethod
    def inbox(self) -> Any:
        """A queue of answers, with `put_nowait` and `empty`."""

    @abstractmethod
    async def send(self, frame_id: int, request: StreamRequest, inbox: Any) -> None:
        """Sends a message whose answers go to `inbox`, until `forget`. The error that ended the stream."""

    @abstractmethod
    async def _get(self, inbox: Any, timeout_s: float) -> Any:
        """What an inbox holds next; TimeoutError."""

    @abstractmethod
    def cancel(self) -> None:
        """Ends the stream at once; its chunks that have not begun are dropped."""

    @abstractmethod
    async def close(self) -> None:
        """Ends the stream and its reader."""

    def forget(self, frame_id: int) -> None:
        """Nobody waits for a frame's answers any more."""
        with self._lock:
            self._waiting.pop(frame_id, None)

    async def take(self, inbox: Any, timeout_s: float) -> tuple[str, int, Any]:
        """The next answer; DeadlineExceeded, or the error that ended the stream."""
        try:
            found = await self._get(inbox, timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {timeout_s:g} s") from None
        if isinstance(found, CellarError):
            raise found
        return found  # type: ignore[no-any-return]

    async def ask(self, frame_id: int, request: StreamRequest, timeout_s: float) -> Any:
        """Sends a message and waits for its one answer; its error, where it is refused as a whole."""
        inbox = self.inbox()
        await self.send(frame_id, request, inbox)
        try:
            kind, _, message = await self.take(inbox, timeout_s)
        finally:
            self.forget(frame_id)
        if kind == "frame_error":
            raise from_error(message.error)
        return message

    def _expect(self, frame_id: int, inbox: Any) -> None:
        with self._lock:
            if self.error is not None:
                raise self.error
            self._waiting[frame_id] = inbox

    def _hand_out(self, response: StreamResponse) -> None:
        kind = response.WhichOneof("kind")
        message = getattr(response, kind)
        for frame_id in set(message.frame_ids) if kind == "answer" else [message.frame_id]:
            inbox = self._waiting.get(frame_id)
            if inbox is not None:
                inbox.put_nowait((kind, frame_id, message))

    def _end(self, error: CellarError) -> None:
        with self._lock:
            self.error = error
            waiting = set(self._waiting.values())
            self._waiting.clear()
        for inbox in waiting:
            inbox.put_nowait(error)
