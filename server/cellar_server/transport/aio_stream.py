"""A stream on grpc.aio some of whose messages go as rows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

import grpc

from cellar_server.transport.base import STREAM
from cellar_server.transport.rows import RowTransport

EOF = grpc.aio.EOF


class AioStream:
    """One RPC as its handler sees it: a grpc.aio.ServicerContext with a lane, as in call.h. Use on the event loop."""

    style = STREAM
    is_threaded = False

    def __init__(
        self,
        transport: RowTransport,
        context: grpc.aio.ServicerContext,
        deserialize: Callable[[bytes], Any] | None,
        serialize: Callable[[Any], bytes] | None,
    ) -> None:
        self._transport, self._context = transport, context
        self._deserialize, self._serialize = deserialize or bytes, serialize or bytes
        self.number = transport.open(self)
        self.lane = self.stream = 0
        self.caller = b""
        self._window = 0  # 0: nothing is read ahead
        self._take: Callable[[bytes], bool] | None = None  # is offered messages first
        self._messages = self._rows = 0  # of a lane, not settled
        self._room: asyncio.Future[None] | None = None  # the reader waits for something to be settled
        self._out: deque[tuple[bytes, int, asyncio.Future[None] | None]] = deque()  # messages, and the rows in each
        self._writing: Any = None  # the write that is under way
        self._nothing: asyncio.Future[None] | None = None  # the end waits for the last one to be written
        self._fault: BaseException | None = None  # nothing can be written any more

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    # -- in ------------------------------------------------------------------------------------------------------

    async def read(self) -> Any:
        """The next message that is no row, or EOF once the rows before it are answered."""
        read = self._context.read
        while True:
            while self._window and self._messages + self._rows >= self._window:
                await self._settled()
            message: Any = await read()
            if message is EOF:
                while self._rows:
                    await self._settled()
                return EOF
            if self._window:
                self._transport.num_messages += 1
                if self._take is not None and self._take(message):
                    self._rows += 1
                    continue
                self._messages += 1
            return self._deserialize(message)

    async def _settled(self) -> None:
        self._room = asyncio.get_running_loop().create_future()
        await self._room

    def open_lane(self, lane: int, stream: int, window: int) -> None:
        """See NativeCall."""
        if not self._window:
            self._messages = 1  # the one that made the caller open it; a later lane goes on with what there is
        self.lane, self.stream, self._window = lane, stream, window
        self._take = self._post

    def _post(self, message: bytes) -> bool:
        # a message that is no row may name the sessions of rows behind it: these wait until it was dealt with
        return not self._messages and self._transport.post(self, message)

    def read_ahead(self, window: int, take: Callable[[bytes], bool] | None = None) -> None:
        """See NativeCall."""
        self._window, self._take = window, take

    def settle(self, messages: int, rows: int = 0) -> None:
        """See NativeCall."""
        self._messages -= messages
        self._rows -= rows
        _wake(self._room)

    # -- out -----------------------------------------------------------------------------------------------------

    async def write(self, message: Any) -> None:
        """Sends a message; returns when it was taken in, so a slow reader makes its writer wait."""
        raw = self._serialize(message)
        if not self._window:
            await self._context.write(raw)
            return
        if self._fault is not None:
            raise self._fault
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(raw, 0, written)
        await written

    def answer(self, message: bytes) -> None:
        """See NativeCall; on the event loop."""
        self.send(message, 1)

    def send(self, raw: bytes, rows: int) -> None:
        """Answers so many rows of the lane, which are settled when the message is out."""
        if self._fault is None:
            self._put(raw, rows, None)

    def _put(self, raw: bytes, rows: int, written: asyncio.Future[None] | None) -> None:
        self._out.append((raw, rows, written))
        if self._writing is None:
            self._start()

    def _start(self) -> None:
        """Begins to write the first message. Its coroutine is driven by hand: a task that sleeps between two messages
        costs as much again as the write."""
        self._writing = self._context.write(self._out[0][0])
        self._go_on(None)

    def _go_on(self, _: Any) -> None:
        try:
            waited = self._writing.send(None)
        except StopIteration:
            self._written()
        except (Exception, asyncio.CancelledError) as fault:  # the caller is gone; its read ends the stream
            self._fail(fault)
        else:
            waited._asyncio_future_blocking = False  # as a task says that it waits now
            waited.add_done_callback(self._go_on)

    def _written(self) -> None:
        _, rows, written = self._out.popleft()
        _wake(written)
        if rows:
            self._rows -= rows
            _wake(self._room)
        if self._out:
            self._start()
        else:
            self._writing = None
            _wake(self._nothing)

    def _fail(self, fault: BaseException) -> None:
        self._fault, self._writing = fault, None
        for _, _, written in self._out:
            if written is not None and not written.done():
                written.set_exception(fault)
        self._out.clear()
        _wake(self._nothing)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """Ends the call behind what was sent."""
        while self._out:
            self._nothing = asyncio.get_running_loop().create_future()
            await self._nothing
        await self._context.abort(code, details, trailing_metadata)
        raise AssertionError("abort returned")

    def close(self) -> None:
        """The call is over."""
        self._transport.close(self.number)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
