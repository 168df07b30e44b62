"""Sequences of the protocol: sessions that are stepped by correlation id."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import DataType

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.asking import TIMING, ask, earlier, step
from cellar_server.front.oip import parameters, schema, tensors
from cellar_server.front.oip.asked import Asked
from cellar_server.front.oip.chunks import Chunk
from cellar_server.front.oip.parameters import Parameters
from cellar_server.front.oip.turns import Turns
from cellar_server.front.registry import Registry
from cellar_server.sessions import messages

# Last answers of ended sequences, kept so that a request sent again by its position gets its answer again.
MAX_ENDED, MAX_ENDED_BYTES = 1024, 65_536
_ABSENT = (Reason.SESSION_NOT_FOUND, Reason.SESSION_EXPIRED, Reason.SESSION_CLOSED, Reason.STALE_HANDLE)


class Sequences:
    """Runs chunks. Those of one sequence go one after the other, in the order of their arrival; those of others that
    come meanwhile share its runs."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.turns = Turns()
        self.chunks = registry.chunks
        self._ended: OrderedDict[tuple[str, int, bytes], bytes] = OrderedDict()

    def engine_of(self, newest: Engine, given: Parameters, scope: str) -> Engine:
        """The version that a request which names none means: that of its sequence; for a new one the newest that is not
        being unloaded. SHUTTING_DOWN."""
        if given.is_start:
            return self.registry.find_for_new(newest.name)
        assert given.sequence is not None
        for engine in self.engines_of(newest):
            id = scope + parameters.session_id(engine.name, engine.version, given.sequence)
            if self.registry.directory.has(id):
                return engine
        return newest

    def engines_of(self, newest: Engine) -> list[Engine]:
        """All versions of a model, the newest first; from any thread."""
        engines = [engine for engine in tuple(self.registry.engines.values()) if engine.name == newest.name]
        return sorted(engines, key=lambda engine: -engine.version)

    async def answers(self, asked: Asked, deadline_s: float, scope: str) -> AsyncIterator[Any]:
        """The one ModelInferResponse to any request of a sequence, whose turn is over when the next is asked for.
        CellarError."""
        given, engine, request = asked.given, asked.engine, asked.request
        assert given.sequence is not None
        if not asked.signature.keeps_sessions:
            raise CellarError(Reason.UNSUPPORTED, "this model takes whole sequences only: send no sequence_id")
        if asked.rows != 1:
            raise CellarError(Reason.SHAPE_MISMATCH, f"a request of a sequence has one row; this one has {asked.rows}")
        id = scope + parameters.session_id(engine.name, engine.version, given.sequence)
        chunk = chunk_of(asked, id, deadline_s)
        again = (id, given.position, chunk.data) if given.position is not None else None
        await self.turns.take(id)
        try:
            if again is not None and again in self._ended and not self.registry.directory.has(id):
                kept = schema.ModelInferResponse.FromString(self._ended[again])
                kept.id = request.id
                yield kept
                return
            holding = self.registry.holding
            try:
                errors = await (holding.reserve if given.is_start else holding.take_up)([id])
                if id in errors:
                    raise errors[id]
                outputs = await self._run(engine, chunk, opens=given.is_start)
            except CellarError as error:
                raise in_words_of_sequences(error, given.sequence, engine.name) from None
            response = _response(asked, outputs)
            if given.is_end:
                await ask(engine, lambda sessions: sessions.close(id))
                self._keep(again, response)
            yield response
        finally:
            self.turns.leave(id)

    async def _run(self, engine: Engine, chunk: Chunk, *, opens: bool) -> np.ndarray:
        """The emissions of a chunk. One that opens its session, or is traced, goes by itself."""
        if not opens and TIMING.get() is None:
            return await self.chunks.ask(engine, chunk)
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
                None if chunk.position < 0 else chunk.position,
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


def chunk_of(asked: Asked, id: str, deadline_s: float) -> Chunk:
    """What a request of a sequence brings its session."""
    signature, value, given = asked.signature, asked.value, asked.given
    data = value.elements[0] if signature.is_text else value.data
    length = len(data) if signature.is_text else value.shape[1] if signature.has_time else 1
    until_s, ends = earlier(deadline_s, given.timeout_ms), given.is_end and signature.is_text
    return Chunk(id, data, length, -1 if given.position is None else given.position, until_s, given.is_bulk, ends)


def _response(asked: Asked, outputs: np.ndarray) -> Any:
    # a text that ends no word emits nothing: a tensor without rows
    values = outputs[None] if asked.signature.gives_all(asked.given) else outputs[-1:]
    return asked.respond([tensors.numbers(asked.signature.outputs[0].name, values)])


def in_words_of_sequences(error: CellarError, sequence: int | str | None, model: str) -> CellarError:
    """An error in the words that clients of sequence batchers look for."""
    what = f"sequence {sequence!r} to model {model!r}"
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
