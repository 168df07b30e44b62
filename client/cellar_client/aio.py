"""The client, for asyncio: the same verbs as Client, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Self

from cellar_client.drivers import awaited
from cellar_client.generation import GenerationCore
from cellar_client.messages import Token
from cellar_client.session import SessionCore
from cellar_client.stream import StreamCore
from cellar_client.tasks import Tasks
from cellar_client.verbs import Verbs


class AsyncGeneration(GenerationCore, AsyncIterator[Token]):
    """A running generation: `async for token in generation`. See Generation for its attributes."""

    async def __anext__(self) -> Token:
        token = await self._token()
        if token is None:
            raise StopAsyncIteration
        return token

    async def close(self) -> None:
        """Stops the generation on the server."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncSession(SessionCore):
    """One sequence whose state the server keeps. See Session."""

    step = awaited(SessionCore._step)
    info = awaited(SessionCore._info)
    fork = awaited(SessionCore._fork)
    export = awaited(SessionCore._export)
    state = awaited(SessionCore._state)
    close = awaited(SessionCore._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self._leave(kind)


class AsyncFrameStream(StreamCore):
    """Many sessions of one model on a stream of their own. See FrameStream."""

    open = awaited(StreamCore._open)
    send = awaited(StreamCore._send)
    receive = awaited(StreamCore._receive)
    step = awaited(StreamCore._step)
    close_sessions = awaited(StreamCore._close_sessions)
    close = awaited(StreamCore._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncClient(Verbs[AsyncSession, AsyncGeneration, AsyncFrameStream]):
    """A Cellar server, or several that stand for one another, for asyncio. See Client for what is asked and given.

    async with AsyncClient("127.0.0.1:50051") as client:
        async with await client.session("forecast") as session:
            await session.step(hour)
        async for token in client.generate("chars-en", "ROMEO:"):
            ...
    """

    _transport = Tasks()
    _session_class, _generation_class, _stream_class = AsyncSession, AsyncGeneration, AsyncFrameStream

    models = awaited(Verbs._models)
    model = awaited(Verbs._model)
    is_serving = awaited(Verbs._is_serving)
    load = awaited(Verbs._load)
    unload = awaited(Verbs._unload)
    predict = awaited(Verbs._predict)
    predict_many = awaited(Verbs._predict_many)
    session = awaited(Verbs[AsyncSession, AsyncGeneration, AsyncFrameStream]._session)
    resume = awaited(Verbs[AsyncSession, AsyncGeneration, AsyncFrameStream]._resume)
    sessions = awaited(Verbs._sessions)
    fork_session = awaited(Verbs._fork_session)
    close_session = awaited(Verbs._close_session)
    import_session = awaited(Verbs[AsyncSession, AsyncGeneration, AsyncFrameStream]._import_session)
    stream = awaited(Verbs[AsyncSession, AsyncGeneration, AsyncFrameStream]._stream)
    close = awaited(Verbs._close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()
