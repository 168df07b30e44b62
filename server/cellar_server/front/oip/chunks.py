"""Chunks of sequences on their way to the engines: what waits when an engine begins a run goes together, as rows."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cellar_proto.v1.inference_pb2 import Frame, Priority

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.asking import CALLER
from cellar_server.sessions.messages import BY_SEQUENCE, AnswerReply, Rows, RowsRefused, RowsReply

# What an engine makes of a chunk: its emissions float32 [n, ...], or why there are none.
Outcome = np.ndarray | CellarError
# What rows have in common, by whether they may wait and whether their texts end.
_COMMON = {
    (is_bulk, ends): Frame(priorities=[Priority.BULK] if is_bulk else None, ends=[True] if ends else None)
    for is_bulk in (False, True)
    for ends in (False, True)
}


@dataclass(slots=True)
class Chunk:
    """One chunk of an open session. length: steps (bytes, for text); position: -1 for where the session stands;
    deadline_s: on the engine's clock, 0 for none; is_bulk: it may wait; ends: the text ends with it; caller: who takes
    turns with others."""

    id: str
    data: bytes
    length: int
    position: int = -1
    deadline_s: float = 0.0
    is_bulk: bool = False
    ends: bool = False
    caller: int = 0


class Chunks:
    """Takes chunks to their engines and their outcomes back; from any thread. An engine takes what waits for it itself,
    when it begins its next run."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        # whom each chunk's outcome goes to, and the event loop on which; none: at once, on the engine's thread
        self._asked: dict[int, tuple[Callable[[Outcome], object], asyncio.AbstractEventLoop | None]] = {}
        self._waiting: dict[Engine, deque[tuple[int, Chunk]]] = {}

    def post(
        self,
        engine: Engine,
        chunk: Chunk,
        receive: Callable[[Outcome], object],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Hands a chunk over; `receive` is called once with what comes of it: on the event loop, where one is given,
        else on the engine's thread."""
        number = next(self._numbers)
        self._asked[number] = receive, loop
        waiting = self._waiting.get(engine)
        if waiting is None:
            waiting = self._waiting.setdefault(engine, deque())
        waiting.append((number, chunk))
        engine.ring()
        if engine.is_over:
            self._give_up(engine, waiting)

    async def ask(self, engine: Engine, chunk: Chunk) -> np.ndarray:
        """The emissions of a chunk. CellarError."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[np.ndarray] = loop.create_future()

        def receive(outcome: Outcome) -> None:
            if answer.done():
                return
            if isinstance(outcome, CellarError):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        chunk.caller = CALLER.get()
        self.post(engine, chunk, receive, loop)
        return await answer

    def take(self, engine: Engine) -> list[Rows]:
        """The chunks that wait for an engine, by what they have in common; does not wait."""
        waiting = self._waiting.get(engine)
        return self._taken(waiting) if waiting else []

    def _taken(self, waiting: deque[tuple[int, Chunk]]) -> list[Rows]:
        alike: dict[tuple[bool, bool], list[tuple[int, Chunk]]] = {}
        try:
            while True:
                number, chunk = waiting.popleft()
                alike.setdefault((chunk.is_bulk, chunk.ends), []).append((number, chunk))
        except IndexError:
            return [self._rows(asked, _COMMON[key]) for key, asked in alike.items()]

    def close(self, engine: Engine) -> None:
        """An engine takes nothing any more."""
        self._give_up(engine, self._waiting.get(engine, deque()))

    def _give_up(self, engine: Engine, waiting: deque[tuple[int, Chunk]]) -> None:
        """Gives what waits to an engine that is over, which refuses it. Whoever put something there does so too."""
        self._waiting.pop(engine, None)
        for rows in self._taken(waiting):
            engine.post(rows)

    def _rows(self, asked: list[tuple[int, Chunk]], frame: Frame) -> Rows:
        numbers, chunks = zip(*asked, strict=True)
        nothing = np.zeros(len(chunks), np.int64)
        deadline = None
        if any(chunk.deadline_s for chunk in chunks):
            deadline = np.array([chunk.deadline_s or np.inf for chunk in chunks])
        data = [chunk.data for chunk in chunks]
        return Rows(
            self,
            b"sequence" + frame.SerializeToString(),
            frame,
            np.array(numbers, np.uint64),
            nothing,
            nothing.view(np.uint64),
            nothing.view(np.uint64),
            np.array([chunk.position for chunk in chunks]),
            np.array([chunk.length for chunk in chunks]),
            np.full(len(chunks), -1),
            np.array([len(each) for each in data]),
            np.frombuffer(b"".join(data), np.uint8),
            ids=[chunk.id for chunk in chunks],
            deadline=deadline,
            caller=np.array([chunk.caller for chunk in chunks]),
            outlet=BY_SEQUENCE,
        )

    # -- out, from an engine's thread ----------------------------------------------------------------------------

    def send(self, reply: RowsReply) -> None:
        """Answers of rows."""
        self._answer(reply.call.tolist(), reply)

    def refuse(self, reply: RowsRefused) -> None:
        """One error for rows."""
        self._tell([(call, reply.error) for call in reply.call.tolist()])

    def asker(self, call: int, is_step: bool) -> _Asker:
        """Whom a single row's answer goes to."""
        return _Asker(self, call)

    def _answer(self, calls: list[int], reply: AnswerReply) -> None:
        errors, end = dict(reply.errors), 0
        lengths = np.asarray(reply.lengths).tolist()
        told: list[tuple[int, Outcome]] = []
        for i, (call, length) in enumerate(zip(calls, lengths, strict=True)):
            begin, end = end, end + length
            told.append((call, errors[i] if i in errors else reply.outputs[begin:end]))
        self._tell(told)

    def _tell(self, told: list[tuple[int, Outcome]]) -> None:
        """Each outcome to whom it is for; those for one event loop go there together."""
        later: dict[asyncio.AbstractEventLoop, list[tuple[Callable[[Outcome], object], Outcome]]] = {}
        for call, outcome in told:
            asked = self._asked.pop(call, None)
            if asked is None:  # who is told twice, by an engine that died, heeds the first
                continue
            receive, loop = asked
            if loop is None:
                receive(outcome)
            else:
                later.setdefault(loop, []).append((receive, outcome))
        for loop, outcomes in later.items():
            loop.call_soon_threadsafe(_receive_all, outcomes)


def _receive_all(outcomes: list[tuple[Callable[[Outcome], object], Outcome]]) -> None:
    for receive, outcome in outcomes:
        receive(outcome)


class _Asker:
    """The chunk of one row; its reply comes on the event loop."""

    def __init__(self, chunks: Chunks, call: int) -> None:
        self._chunks, self._call = chunks, call

    def receive(self, reply: AnswerReply) -> None:
        self._chunks._answer([self._call], reply)
