"""The models that a server holds, by name and version, the broken ones with their error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from cellar_proto.v1.models_pb2 import Limits
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.config import Config
from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.sessions.directory import Directory
from cellar_server.sessions.messages import AnswerReply, Call, CallReply, FrameReply


class Registry:
    """Engines by (name, version), broken entries beside them, and the directory of all sessions."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.directory = Directory()
        self.engines: dict[tuple[str, int], Engine] = {}
        self.broken: dict[tuple[str, int], CellarError] = {}

    def find(self, name: str, version: int = 0) -> Engine:
        """The engine of a model, version 0 for the newest that serves; MODEL_NOT_FOUND, MODEL_BROKEN."""
        if version:
            found = self.engines.get((name, version))
        else:
            found = max(
                (engine for (each, _), engine in self.engines.items() if each == name),
                key=lambda engine: engine.version,
                default=None,
            )
        if found is not None:
            return found
        for (each, number), error in self.broken.items():
            if each == name and version in (0, number):
                raise CellarError(Reason.MODEL_BROKEN, error.message)
        what = f"{name!r}" + (f" version {version}" if version else "")
        known = ", ".join(sorted({name for name, _ in self.engines})) or "none"
        raise CellarError(Reason.MODEL_NOT_FOUND, f"there is no model {what}; there are: {known}")

    def limits(self, engine: Engine | None = None) -> Limits:
        """What is taken from callers."""
        config = self.config
        max_chunk = config.max_chunk
        if engine is not None and engine.manifest.max_chunk:
            max_chunk = min(max_chunk, engine.manifest.max_chunk)
        return Limits(
            max_message_bytes=config.max_message_bytes,
            max_chunk=max_chunk,
            max_chunks_in_flight=config.max_chunks_in_flight,
            max_rows=config.max_queue_rows,
            max_frames_in_flight=config.max_frames_in_flight,
        )


class Pending:
    """A caller's future that an engine's reply resolves."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def receive(self, reply: Any) -> None:
        if self.future.done():
            return
        if reply.error is not None:
            self.future.set_exception(reply.error)
        else:
            self.future.set_result(reply.value if isinstance(reply, CallReply) else reply)


class PendingChunk:
    """A caller's future that the answer to one chunk resolves, with its AnswerReply."""

    def __init__(self) -> None:
        self.future: asyncio.Future[AnswerReply] = asyncio.get_running_loop().create_future()

    def receive(self, reply: AnswerReply | FrameReply) -> None:
        if self.future.done():
            return
        if isinstance(reply, FrameReply):
            self.future.set_exception(reply.error)
        elif reply.errors:
            self.future.set_exception(reply.errors[0][1])
        else:
            self.future.set_result(reply)


async def ask(engine: Engine, function: Callable[[Any], Any]) -> Any:
    """Runs `function(sessions)` on the engine's thread; its value, or the CellarError that it raised."""
    pending = Pending()
    engine.post(Call(pending, function))
    return await pending.future
