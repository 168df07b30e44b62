"""Asking an engine from the event loop: a call, whole sequences, a chunk, a generation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from typing import Any

from cellar_server.engine import Engine
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.messages import (
    AnswerReply,
    Call,
    CallReply,
    Cancel,
    Credit,
    FrameReply,
    GenerateReply,
    GenerateRequest,
    PredictReply,
    PredictRequest,
    StepRequest,
)
from cellar_server.sessions.timing import Timing

# Filled by the engine for what a task asks of it, where somebody traces the call.
TIMING: ContextVar[Timing | None] = ContextVar("timing", default=None)
# Emissions that a generation may be ahead of its reader.
CREDITS = 32
# Number of the caller whose call is being answered, who takes turns with others.
CALLER: ContextVar[int] = ContextVar("caller", default=0)


class Pending:
    """A caller's future that the engine's one reply resolves."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def receive(self, reply: AnswerReply | FrameReply | PredictReply | CallReply) -> None:
        if self.future.done():
            return
        errors = [error for _, error in reply.errors] if isinstance(reply, AnswerReply) else [reply.error]
        error = errors[0] if errors else None
        if error is not None:
            self.future.set_exception(error)
        else:
            reply.to = None  # a reply and its asker hold each other, and its bytes would stay until the collector comes
            self.future.set_result(reply)


class _Emissions:
    """The replies of one generation, in order."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[GenerateReply] = asyncio.Queue()
        self._held: GenerateReply | None = None

    def receive(self, reply: GenerateReply) -> None:
        self._queue.put_nowait(reply)

    async def take(self, *, joins: bool) -> GenerateReply:
        """The next reply; joins: with those that came behind it meanwhile, up to an error."""
        reply, self._held = self._held or await self._queue.get(), None
        while joins and not self._queue.empty() and reply.error is None:
            following = self._queue.get_nowait()
            if following.error is not None:
                self._held = following
                break
            reply.join(following)
        return reply


def earlier(deadline_s: float, timeout_ms: int) -> float:
    """The earlier of a deadline on the monotonic clock and a timeout from now; 0 stands for none of either."""
    if not timeout_ms:
        return deadline_s
    until_s = time.monotonic() + timeout_ms / 1000
    return min(deadline_s or until_s, until_s)


async def ask(engine: Engine, function: Callable[[Any], Any]) -> Any:
    """Runs `function(sessions)` on the engine's thread; its value, or the CellarError that it raised."""
    pending = Pending()
    engine.post(Call(pending, function))
    reply: CallReply = await pending.future
    return reply.value


async def predict(engine: Engine, request: Callable[[Any], PredictRequest]) -> PredictReply:
    """The reply to whole sequences; CellarError where the call failed as a whole. A caller that goes drops it."""
    pending = Pending()
    made = request(pending)
    made.caller, made.timing = CALLER.get(), TIMING.get()
    engine.post(made)
    try:
        return await pending.future
    except asyncio.CancelledError:
        engine.post(Cancel(pending))
        raise


async def step(engine: Engine, request: Callable[[Any], StepRequest]) -> AnswerReply:
    """The answer to one chunk, or the CellarError of its row."""
    pending = Pending()
    made = request(pending)
    made.caller, made.timing = CALLER.get(), TIMING.get()
    engine.post(made)
    return await pending.future


async def generate(
    engine: Engine,
    text: bytes,
    condition: bytes,
    options: Options,
    *,
    session_id: str = "",
    position: int = 0,
    deadline_s: float = 0.0,
    num_alternatives: int = 0,
    next_id: int | None = None,
    joins: bool = False,
) -> AsyncGenerator[GenerateReply, None]:
    """The replies of one generation, the last with `finish`; CellarError. Closing it drops what is left; the engine is
    never more than CREDITS emissions ahead. joins: emissions that came while the reader was busy are one reply."""
    emissions, is_over, taken = _Emissions(), False, 0
    made = GenerateRequest(emissions, text, condition, options, session_id, position, deadline_s, CREDITS)
    made.caller, made.timing = CALLER.get(), TIMING.get()
    made.num_alternatives, made.next_id = num_alternatives, next_id
    engine.post(made)
    try:
        while not is_over:
            reply = await emissions.take(joins=joins)
            is_over = bool(reply.finish) or reply.error is not None
            if reply.error is not None:
                raise reply.error
            yield reply
            taken += len(reply.ids)
            # many at once: most generations end before the engine has to be told
            if taken >= CREDITS // 2 and not is_over:
                engine.post(Credit(emissions, taken))
                taken = 0
    finally:
        if not is_over:
            engine.post(Cancel(emissions))
