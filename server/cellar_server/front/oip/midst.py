"""Requests of sequences, answered without protobuf, a task or a future each."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import DecodeError

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.asking import earlier
from cellar_server.front.callers import Caller
from cellar_server.front.oip import parameters, schema, wire
from cellar_server.front.oip.asked import Asked
from cellar_server.front.oip.chunks import Chunk
from cellar_server.front.oip.sequences import chunk_of
from cellar_server.front.oip.under_way import Asker, Leg, ReplyTo, UnderWay
from cellar_server.sessions.messages import StepRequest

# Kinds of request, and names of sequences of all of them, that are kept.
_MOST_KINDS, _MOST_NAMES = 1024, 1 << 16


@dataclass(slots=True)
class _Kind:
    """Requests that differ in nothing but what `Found` names, for as long as caller and models are the same."""

    caller: Caller
    engines: tuple[Engine, ...]
    model: str
    legs: list[Leg]


class Midst:
    """Takes requests from any thread. answers: those of the way that takes all requests, which has what is odd, or
    waits for another of its sequence; is_last: responses say that they are the last, as on streams."""

    def __init__(self, answers: Any, *, is_last: bool) -> None:
        self._answers = answers
        self._registry = answers.requests.registry
        self._sequences = answers.requests.sequences
        self._is_last = is_last
        self._kinds: dict[tuple[str, tuple[bytes, ...]], _Kind] = {}
        self._num_names = 0  # in their legs

    def take(self, message: bytes, caller: Caller, asker: Asker) -> bool:
        """Begins with a request; False, and nothing was done, where it is for the way that takes all."""
        found = wire.find(message)
        if found is None:
            return False
        engines = tuple(self._registry.engines.values())
        kind = self._kinds.get((caller.scope, found.around))
        if kind is None or kind.caller is not caller or kind.engines != engines:
            kind = self._learn(message, found, caller, engines)
        for leg in kind.legs:
            session = leg.sessions.get(found.sequence) or self._name(leg, found.sequence, caller.scope)
            if session is not None and (leg.opens or self._registry.directory.has(session)):
                return self._begin(kind, leg, session, found, len(message), asker)
        return False

    def forget(self) -> None:
        """Lets go of what is kept, as when a model is gone."""
        self._kinds.clear()
        self._num_names = 0

    def _learn(self, message: bytes, found: wire.Found, caller: Caller, engines: tuple[Engine, ...]) -> _Kind:
        legs: list[Leg] = []
        kind = _Kind(caller, engines, "", legs)
        try:
            request = schema.ModelInferRequest.FromString(message)
            kind.model = request.model_name
            legs += self._legs(request, found, caller)
        except (DecodeError, CellarError, RuntimeError):
            pass  # the other way says so, each time; RuntimeError: the models change just now, on the event loop
        if len(self._kinds) >= _MOST_KINDS:
            self.forget()
        self._kinds[caller.scope, found.around] = kind
        return kind

    def _legs(self, request: Any, found: wire.Found, caller: Caller) -> list[Leg]:
        """CellarError for requests that cannot be answered."""
        answers = self._answers
        caller.must_call(request.model_name)
        newest = answers.find(request.model_name, request.model_version, caller)
        given = parameters.Parameters.of(request)
        if given.sequence is None or given.is_bulk or (given.is_start and given.is_end):
            return []
        if request.model_version:
            engines = [newest]
        elif given.is_start:
            engines = [self._registry.find_for_new(newest.name)]
        else:
            engines = self._sequences.engines_of(newest)
        legs = []
        for engine in engines:
            signature = answers.requests.signature(engine)
            if not signature.keeps_sessions:
                continue
            asked = Asked.of(request, given, engine, signature)
            if asked.rows != 1:
                return []
            chunk = chunk_of(asked, "", 0.0)
            lead = found.values[: len(found.values) - len(chunk.data)]
            if not found.values.endswith(chunk.data):
                return []
            # of the request nothing is kept that may be large, or is another's
            asked = replace(
                asked, request=schema.ModelInferRequest(), value=replace(asked.value, data=b"", elements=())
            )
            legs.append(
                Leg(
                    engine,
                    given.is_start,
                    given.is_end,
                    chunk.length,
                    lead,
                    given.timeout_ms,
                    self._registry.rations.of(caller.scope, engine.name),
                    wire.Heads(asked, is_last=self._is_last),
                    answers.tally(engine),
                    {},
                )
            )
        return legs

    def _name(self, leg: Leg, raw: bytes, scope: str) -> str | None:
        """The session of a sequence; None for what is none."""
        sequence = wire.number_or_text(raw)
        if sequence is None:
            return None
        self._num_names += 1
        if self._num_names > _MOST_NAMES:
            self.forget()
        made = leg.sessions[raw] = scope + parameters.session_id(leg.engine.name, leg.engine.version, sequence)
        return made

    def _begin(self, kind: _Kind, leg: Leg, session: str, found: wire.Found, num_bytes: int, asker: Asker) -> bool:
        """The same of a request of `num_bytes` whose session is known."""
        begun_ns = time.perf_counter_ns()
        values, lead, position = found.values, leg.lead, -1
        if found.position:
            at = wire.whole(found.position)
            # of ended sequences that may be sent again the other way knows
            if at is None or leg.opens or leg.closes:
                return False
            position = at
        if leg.opens and (self._registry.leaving or self._registry.holding.can_hold_more):
            return False
        if lead:
            if not values.startswith(lead):
                return False
            values = values[len(lead) :]
        turns = self._sequences.turns
        if not turns.begin(session):
            return False
        if leg.ration is not None and leg.ration.take(1, leg.length, num_bytes) is not None:
            turns.leave(session)
            return False
        turn, deadline_s = asker.turn, earlier(asker.deadline_s, leg.timeout_ms)
        request = UnderWay(leg, kind.model, session, found, asker, turns, begun_ns)
        if leg.opens:
            to = ReplyTo(request.receive_first)
            step = StepRequest(to, session, 0, [], values, leg.length, opens=True, deadline_s=deadline_s, caller=turn)
            leg.engine.post(step)
            return True
        ends = leg.closes and bool(lead)
        chunk = Chunk(session, values, leg.length, position, deadline_s, False, ends, turn)
        self._sequences.chunks.post(leg.engine, chunk, request.receive, asker.loop)
        return True
