"""A request of a sequence under way: what becomes of its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.oip import wire
from cellar_server.front.oip.chunks import Outcome
from cellar_server.front.oip.sequences import in_words_of_sequences
from cellar_server.front.oip.statistics import Tally
from cellar_server.front.oip.turns import Turns
from cellar_server.front.rations import Ration
from cellar_server.front.status import unforeseen
from cellar_server.sessions.messages import AnswerReply, Call


class Asker(Protocol):
    """Whom the answer to a request goes to. turn: who takes turns with others; deadline_s: on the monotonic clock, 0
    for none; loop: where it wants its answers; none: on an engine's thread, at once."""

    turn: int
    deadline_s: float
    loop: asyncio.AbstractEventLoop | None

    def answer(self, response: bytes) -> None: ...

    def fail(self, model: str, id: bytes, error: CellarError) -> None:
        """id: the request's field."""
        ...


@dataclass(slots=True)
class Leg:
    """A version of a model that a sequence may be of. opens, closes: what its requests do beside; length: steps (bytes,
    for text) of each; lead: what stands before its text; sessions: their ids, by what the parameter holds."""

    engine: Engine
    opens: bool
    closes: bool
    length: int
    lead: bytes
    timeout_ms: int
    ration: Ration | None
    heads: wire.Heads
    tally: Tally
    sessions: dict[bytes, str]


@dataclass(slots=True)
class UnderWay:
    """A request that is under way. model: as the request names it."""

    leg: Leg
    model: str
    session: str
    found: wire.Found
    asker: Asker
    turns: Turns
    begun_ns: int

    def receive(self, outcome: Outcome) -> None:
        """What came of its chunk."""
        leg, session = self.leg, self.session
        if leg.closes and not isinstance(outcome, CellarError):
            closing = ReplyTo(lambda reply: self._finish(reply.error or outcome))
            leg.engine.post(Call(closing, lambda sessions: sessions.close(session)))
        elif leg.opens or leg.closes:
            self._finish(outcome)
        else:
            # answers are written on this thread one after the other, and who has this one may send the next at once
            self.turns.leave(session)
            self._answer(outcome)

    def receive_first(self, reply: Any) -> None:
        """The same of the chunk that opens its session: an AnswerReply or a FrameReply."""
        errors = [error for _, error in reply.errors] if isinstance(reply, AnswerReply) else [reply.error]
        self.receive(errors[0] if errors else reply.outputs)

    def _finish(self, outcome: Outcome) -> None:
        self._answer(outcome)
        self.turns.leave(self.session)

    def _answer(self, outcome: Outcome) -> None:
        leg, found = self.leg, self.found
        if leg.ration is not None:
            leg.ration.give_back(1)
        try:
            if not isinstance(outcome, CellarError):
                response = leg.heads.response(found.id, outcome)
                leg.tally.succeed(self.begun_ns, 1)
                self.asker.answer(response)
                return
            error = in_words_of_sequences(outcome, wire.number_or_text(found.sequence), leg.engine.name)
        except Exception:
            error = unforeseen("a response could not be made")
        leg.tally.fail_one(self.begun_ns)
        self.asker.fail(self.model, found.id, error)


class ReplyTo:
    """Whom an engine's reply goes to, on the event loop."""

    def __init__(self, receive: Callable[[Any], object]) -> None:
        self.receive = receive
