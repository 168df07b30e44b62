"""Chunks of sequences on their way to the engines: those of one turn of the event loop go together, as rows."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cellar_proto.v1.inference_pb2 import Frame, Priority

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.asking import CALLER
from cellar_server.sessions.messages import BY_SEQUENCE, AnswerReply, Rows, RowsRefused, RowsReply

# So many chunks go at once: their run may begin while others are read.
MANY = 32
# What an engine makes of a chunk: its emissions float32 [n, ...], or why there are none.
Outcome = np.ndarray | CellarError


@dataclass(slots=True)
class Chunk:
    """One chunk of an open session. length: steps (bytes, for text); position: None for where the session stands;
    deadline_s: on the engine's clock, 0 for none; ends: the text ends with it."""

    id: str
    data: bytes
    length: int
    position: int | None
    deadline_s: float
    is_bulk: bool
    ends: bool


class Chunks:
    """Takes chunks to their engines and their outcomes back. Use on one event loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._asked: dict[int, Callable[[Outcome], object]] = {}
        # by engine and what rows must have in common: number and caller of each chunk
        self._waiting: dict[tuple[Engine, bool, bool], list[tuple[int, int, Chunk]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def post(self, engine: Engine, chunk: Chunk, receive: Callable[[Outcome], object]) -> None:
        """Hands a chunk over; `receive` is called once, on the event loop, with what comes of it."""
        if not self._waiting:
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._flush)
        number = next(self._numbers)
        self._asked[number] = receive
        key = engine, chunk.is_bulk, chunk.ends
        asked = self._waiting.setdefault(key, [])
        asked.append((number, CALLER.get(), chunk))
        if len(asked) == MANY:
            del self._waiting[key]
            engine.post(self._rows(asked, is_bulk=chunk.is_bulk, ends=chunk.ends))

    async def ask(self, engine: Engine, chunk: Chunk) -> np.ndarray:
        """The emissions of a chunk. CellarError."""
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()

        def receive(outcome: Outcome) -> None:
            if answer.done():
                return
            if isinstance(outcome, CellarError):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        self.post(engine, chunk, receive)
        return await answer

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for (engine, is_bulk, ends), asked in waiting.items():
            engine.post(self._rows(asked, is_bulk=is_bulk, ends=ends))

    def _rows(self, asked: list[tuple[int, int, Chunk]], *, is_bulk: bool, ends: bool) -> Rows:
        numbers, callers, chunks = zip(*asked, strict=True)
        n = len(chunks)
        frame = Frame(priorities=[Priority.BULK] if is_bulk else None, ends=[True] if ends else None)
        nothing = np.zeros(n, np.int64)
        deadline = None
        if any(chunk.deadline_s for chunk in chunks):
            deadline = np.array([chunk.deadline_s or np.inf for chunk in chunks])
        return Rows(
            self,
            b"sequence" + frame.SerializeToString(),
            frame,
            np.array(numbers, np.uint64),
            nothing,
            nothing.view(np.uint64),
            nothing.view(np.uint64),
            np.array([-1 if chunk.position is None else chunk.position for chunk in chunks], np.int64),
            np.array([chunk.length for chunk in chunks], np.int64),
            np.full(n, -1),
            np.array([len(chunk.data) for chunk in chunks], np.int64),
            np.frombuffer(b"".join([chunk.data for chunk in chunks]), np.uint8),
            ids=[chunk.id for chunk in chunks],
            deadline=deadline,
            caller=np.array(callers, np.int64),
            outlet=BY_SEQUENCE,
        )

    # -- out, from an engine's thread ----------------------------------------------------------------------------

    def send(self, reply: RowsReply) -> None:
        """Answers of rows."""
        self._call(self._receive, reply.call.tolist(), reply)

    def refuse(self, reply: RowsRefused) -> None:
        """One error for rows."""
        self._call(self._fail, reply.call.tolist(), reply.error)

    def asker(self, call: int, is_step: bool) -> _Asker:
        """Whom a single row's answer goes to."""
        return _Asker(self, call)

    def _call(self, function: Callable[..., object], *given: Any) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function, *given)

    def _receive(self, calls: list[int], reply: AnswerReply) -> None:
        errors, end = dict(reply.errors), 0
        lengths = np.asarray(reply.lengths).tolist()
        for i, (call, length) in enumerate(zip(calls, lengths, strict=True)):
            begin, end = end, end + length
            self._tell(call, errors[i] if i in errors else reply.outputs[begin:end])

    def _fail(self, calls: list[int], error: CellarError) -> None:
        for call in calls:
            self._tell(call, error)

    def _tell(self, call: int, outcome: Outcome) -> None:
        receive = self._asked.pop(call, None)  # who is told twice, by an engine that died, heeds the first
        if receive is not None:
            receive(outcome)


class _Asker:
    """The chunk of one row; its reply comes on the event loop."""

    def __init__(self, chunks: Chunks, call: int) -> None:
        self._chunks, self._call = chunks, call

    def receive(self, reply: AnswerReply) -> None:
        self._chunks._receive([self._call], reply)
