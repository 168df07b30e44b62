"""Sequences of the protocol: sessions that are stepped by correlation id."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import DataType

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.asking import TIMING, ask, earlier, step
from cellar_server.front.oip import parameters, schema, tensors
from cellar_server.front.oip.asked import Asked
from cellar_server.front.oip.chunks import Chunk, Chunks, Outcome
from cellar_server.front.oip.parameters import Parameters
from cellar_server.front.oip.signature import Signature
from cellar_server.front.oip.turns import Turns
from cellar_server.front.registry import Registry
from cellar_server.front.status import unforeseen
from cellar_server.sessions import messages

# Last answers of ended sequences, kept so that a request sent again by its position gets its answer again.
MAX_ENDED, MAX_ENDED_BYTES = 1024, 65_536
_ABSENT = (Reason.SESSION_NOT_FOUND, Reason.SESSION_EXPIRED, Reason.SESSION_CLOSED, Reason.STALE_HANDLE)


class Sequences:
    """Runs chunks. Those of one sequence go one after the other, in the order of their arrival; those of others that
    come meanwhile share its runs."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._turns = Turns()
        self._chunks = Chunks()
        self._ended: OrderedDict[tuple[str, int, bytes], bytes] = OrderedDict()

    def engine_of(self, newest: Engine, given: Parameters, scope: str) -> Engine:
        """The version that a request which names none means: that of its sequence; for a new one the newest that is not
        being unloaded. SHUTTING_DOWN."""
        if given.is_start:
            return self.registry.find_for_new(newest.name)
        assert given.sequence is not None
        versions = [version for name, version in self.registry.engines if name == newest.name]
        for version in sorted(versions, reverse=True):
            id = scope + parameters.session_id(newest.name, version, given.sequence)
            if self.registry.directory.has(id):
                return self.registry.engines[newest.name, version]
        return newest

    async def answer(self, asked: Asked, deadline_s: float, scope: str) -> Any:
        """The ModelInferResponse to any request of a sequence. CellarError."""
        given, engine, request = asked.given, asked.engine, asked.request
        assert given.sequence is not None
        if not asked.signature.keeps_sessions:
            raise CellarError(Reason.UNSUPPORTED, "this model takes whole sequences only: send no sequence_id")
        if asked.rows != 1:
            raise CellarError(Reason.SHAPE_MISMATCH, f"a request of a sequence has one row; this one has {asked.rows}")
        id = scope + parameters.session_id(engine.name, engine.version, given.sequence)
        chunk = _chunk(asked, id, deadline_s)
        again = (id, given.position, chunk.data) if given.position is not None else None
        await self._turns.take(id)
        try:
            if again is not None and again in self._ended and not self.registry.directory.has(id):
                kept = schema.ModelInferResponse.FromString(self._ended[again])
                kept.id = request.id
                return kept
            holding = self.registry.holding
            try:
                errors = await (holding.reserve if given.is_start else holding.take_up)([id])
                if id in errors:
                    raise errors[id]
                outputs = await self._run(engine, chunk, opens=given.is_start)
            except CellarError as error:
                raise _in_words_of_sequences(error, asked) from None
            response = _response(asked, outputs)
            if given.is_end:
                await ask(engine, lambda sessions: sessions.close(id))
                self._keep(again, response)
        finally:
            self._turns.leave(id)
        return response

    def begin(
        self,
        request: Any,
        given: Parameters,
        engine: Engine,
        signature: Signature,
        scope: str,
        receive: Callable[[Any], object],
    ) -> bool:
        """Begins with a chunk in the midst of a sequence of which nothing else is under way; `receive` is called on the
        event loop, with its ModelInferResponse or CellarError. False, and nothing was done, for any other request,
        which `answer` is for. CellarError: so it is too."""
        if given.sequence is None or given.is_start or given.is_end or not signature.keeps_sessions:
            return False
        id = scope + parameters.session_id(engine.name, engine.version, given.sequence)
        if not self._turns.is_free(id) or not self.registry.directory.has(id):
            return False
        asked = Asked.of(request, given, engine, signature)
        if asked.rows != 1:
            return False
        ration = self.registry.rations.of(scope, engine.name)
        if ration is not None and ration.take(1, asked.steps, request.ByteSize()) is not None:
            return False
        self._turns.begin(id)

        def finish(outcome: Outcome) -> None:
            self._turns.leave(id)
            if ration is not None:
                ration.give_back(1)
            try:
                if isinstance(outcome, CellarError):
                    answer: Any = _in_words_of_sequences(outcome, asked)
                else:
                    answer = _response(asked, outcome)
            except Exception:
                answer = unforeseen("a response could not be made")
            receive(answer)

        self._chunks.post(engine, _chunk(asked, id, 0.0), finish)
        return True

    async def _run(self, engine: Engine, chunk: Chunk, *, opens: bool) -> np.ndarray:
        """The emissions of a chunk. One that opens its session, or is traced, goes by itself."""
        if not opens and TIMING.get() is None:
            return await self._chunks.ask(engine, chunk)
        answer = await step(
            engine,
            lambda to: messages.StepRequest(
                to,
                chunk.id,
                DataType.DATA_TYPE_UNSPECIFIED,
                [],
                chunk.data,
                chunk.length,
                opens,
                chunk.position,
                chunk.ends,
                chunk.deadline_s,
                chunk.is_bulk,
            ),
        )
        return answer.outputs

    def _keep(self, key: tuple[str, int, bytes] | None, response: Any) -> None:
        if key is None or len(key[2]) + response.ByteSize() > MAX_ENDED_BYTES:
            return
        self._ended[key] = response.SerializeToString()
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)


def _chunk(asked: Asked, id: str, deadline_s: float) -> Chunk:
    signature, value, given = asked.signature, asked.value, asked.given
    data = value.elements[0] if signature.is_text else value.data
    length = len(data) if signature.is_text else value.shape[1] if signature.has_time else 1
    until_s, ends = earlier(deadline_s, given.timeout_ms), given.is_end and signature.is_text
    return Chunk(id, data, length, given.position, until_s, given.is_bulk, ends)


def _response(asked: Asked, outputs: np.ndarray) -> Any:
    # a text that ends no word emits nothing: a tensor without rows
    values = outputs[None] if asked.signature.gives_all(asked.given) else outputs[-1:]
    return asked.respond([tensors.numbers(asked.signature.outputs[0].name, values)])


def _in_words_of_sequences(error: CellarError, asked: Asked) -> CellarError:
    """An error in the words that clients of sequence batchers look for."""
    what = f"sequence {asked.given.sequence!r} to model {asked.engine.name!r}"
    if error.reason in _ABSENT:
        said = "" if error.reason == Reason.SESSION_NOT_FOUND else f" ({error.message})"
        return CellarError(
            error.reason,
            f"inference request for {what} must specify the START flag on the first request of the sequence{said}",
        )
    if error.reason == Reason.SESSION_EXISTS:
        return CellarError(
            error.reason,
            f"{what} is open already: only its first request must specify the START flag; end it first, or send the "
            "first request again with position 0",
        )
    return error
