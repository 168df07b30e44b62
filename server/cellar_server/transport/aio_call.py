"""A unary call on grpc.aio whose message goes as a row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc

from cellar_server.transport.base import UNARY
from cellar_server.transport.rows import NEVER, End, RowTransport

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class AioCall:
    """What the transport knows of it. answer: the response as bytes, or how it ends instead; None where it is for the
    method's own handler."""

    lane = UNARY

    def __init__(self, transport: RowTransport, style: int, context: grpc.aio.ServicerContext) -> None:
        self.style = style
        self.answer: asyncio.Future[bytes | End | None] = asyncio.get_running_loop().create_future()
        self.peer = context.peer()
        self.stream = hash(self.peer) >> 24 & 0xFFFFFFFFFF
        self.caller = b""
        if transport.caller_header:
            for key, value in context.invocation_metadata() or ():
                if key == transport.caller_header:
                    self.caller = value.encode("latin-1") if isinstance(value, str) else value
        self.number = transport.open(self)

    def send(self, answer: bytes | End | None, rows: int) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)

    def settle(self, messages: int, rows: int = 0) -> None:
        """There is nothing to read further."""


async def ask(
    transport: RowTransport,
    style: int,
    message: bytes,
    context: grpc.aio.ServicerContext,
    cancel: Callable[[list[int]], object],
    take: Callable[[AioCall, bytes, float], bool],
) -> bytes | None:
    """The response to a call whose message somebody takes, until its deadline; None where it is for the method's own
    handler."""
    call = AioCall(transport, style, context)
    left_s = context.time_remaining()
    try:
        if not take(call, message, NEVER if left_s is None else time.monotonic() + left_s):
            return None
        answer = await call.answer
    except asyncio.CancelledError:
        cancel([call.number])
        raise
    finally:
        transport.close(call.number)
    if isinstance(answer, End):
        trailing: Any = tuple(answer.trailing)
        await context.abort(_CODES[answer.code], answer.details, trailing)
    return answer
