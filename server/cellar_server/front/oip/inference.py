"""Requests of the protocol, run by the engines: whole sequences, chunks of sequences, generations."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import DataType

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.asking import ask, earlier, generate, predict, step
from cellar_server.front.oip import parameters, schema, tensors
from cellar_server.front.oip.parameters import Parameters
from cellar_server.front.oip.signature import Signature
from cellar_server.front.oip.tensors import Given, Output
from cellar_server.front.rations import Ration
from cellar_server.front.registry import Registry
from cellar_server.sampling.sampler import Options
from cellar_server.sessions import messages

# Last answers of ended sequences, kept so that a request sent again by its position gets its answer again.
MAX_ENDED, MAX_ENDED_BYTES = 1024, 65_536
_ABSENT = (Reason.SESSION_NOT_FOUND, Reason.SESSION_EXPIRED, Reason.SESSION_CLOSED, Reason.STALE_HANDLE)


class Requests:
    """Runs requests. Chunks of one sequence go one after the other, in the order of their arrival."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._signatures: WeakKeyDictionary[Engine, Signature] = WeakKeyDictionary()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._ended: OrderedDict[tuple[str, int, bytes], bytes] = OrderedDict()

    def signature(self, engine: Engine) -> Signature:
        """How the protocol sees an engine's model."""
        made = self._signatures.get(engine)
        if made is None:
            made = self._signatures[engine] = Signature.of(engine, self.registry.config)
        return made

    def engine_of(self, newest: Engine, given: Parameters, scope: str) -> Engine:
        """The version that a request which names none means: that of its sequence; for a new one the newest that is not
        being unloaded. SHUTTING_DOWN."""
        if given.is_start:
            return self.registry.find_for_new(newest.name)
        assert given.sequence is not None
        for (name, version), engine in sorted(self.registry.engines.items(), reverse=True):
            id = scope + parameters.session_id(name, version, given.sequence)
            if name == newest.name and self.registry.directory.has(id):
                return engine
        return newest

    async def answers(
        self, request: Any, given: Parameters, engine: Engine, deadline_s: float, scope: str
    ) -> AsyncIterator[Any]:
        """The ModelInferResponses of a request: one, or one for each emission of a generation. CellarError."""
        signature = self.signature(engine)
        wanted = [output.name for output in request.outputs]
        unknown = [name for name in wanted if name not in {place.name for place in signature.outputs}]
        if unknown:
            raise CellarError(Reason.INVALID_REQUEST, f"the model has no output {unknown[0]!r}")
        if any(key == "classification" for output in request.outputs for key in output.parameters):
            raise CellarError(Reason.UNSUPPORTED, "outputs are given as they are: classification is not supported")
        place = signature.input
        value = tensors.given(request, place.name, place.datatype, [*signature.batch, *place.dims])
        rows = 1 if signature.is_decoupled else value.shape[0]
        steps, num_bytes = _steps(value, signature, engine), request.ByteSize()
        with self.registry.rations.taken(scope, engine.name, rows, steps, num_bytes) as ration:
            if signature.is_decoupled:
                if given.sequence is not None:
                    raise CellarError(Reason.UNSUPPORTED, "a generation is one request: it takes no sequence_id")
                async for outputs, params in self._generate(request, value, engine, deadline_s, ration):
                    yield _response(request, engine, outputs, wanted, params)
            elif given.sequence is None:
                outputs = [await self._predict(value, given, engine, signature, deadline_s)]
                yield _response(request, engine, outputs, wanted)
            else:
                yield await self._step(request, value, given, engine, signature, wanted, deadline_s, scope)

    # -- whole sequences -----------------------------------------------------------------------------------------

    async def _predict(
        self, value: Given, given: Parameters, engine: Engine, signature: Signature, deadline_s: float
    ) -> Output:
        rows = value.shape[0]
        everything = signature.gives_all(given)
        if signature.is_text:
            lengths, data = [len(text) for text in value.elements], b"".join(value.elements)
        else:
            lengths, data = [value.shape[1] if signature.has_time else 1] * rows, value.data
        dtype = DataType.DATA_TYPE_UNSPECIFIED
        reply = await predict(
            engine,
            lambda to: messages.PredictRequest(
                to, lengths, dtype, [], data, everything, earlier(deadline_s, given.timeout_ms), given.is_bulk
            ),
        )
        if reply.errors:
            row, error = reply.errors[0]
            raise CellarError(
                error.reason,
                f"row {row}: {error.message}" if rows > 1 else error.message,
                retry_after_ms=error.retry_after_ms,
                error_id=error.error_id,
            )
        assert reply.outputs is not None
        name, shape = signature.outputs[0].name, engine.model.runtime.output_shape
        if not everything:
            return tensors.numbers(name, reply.outputs.reshape(rows, *shape))
        if len(set(reply.lengths)) > 1:
            raise CellarError(
                Reason.UNSUPPORTED,
                f"the rows have {reply.lengths} emissions, which is no tensor: send one row a request",
            )
        return tensors.numbers(name, reply.outputs.reshape(rows, reply.lengths[0], *shape))

    # -- sequences -----------------------------------------------------------------------------------------------

    async def _step(
        self,
        request: Any,
        value: Given,
        given: Parameters,
        engine: Engine,
        signature: Signature,
        wanted: Sequence[str],
        deadline_s: float,
        scope: str,
    ) -> Any:
        assert given.sequence is not None
        if not signature.keeps_sessions:
            raise CellarError(Reason.UNSUPPORTED, "this model takes whole sequences only: send no sequence_id")
        if value.shape[0] != 1:
            raise CellarError(
                Reason.SHAPE_MISMATCH, f"a request of a sequence has one row; this one has {value.shape[0]}"
            )
        id = scope + parameters.session_id(engine.name, engine.version, given.sequence)
        data = value.elements[0] if signature.is_text else value.data
        length = len(data) if signature.is_text else value.shape[1] if signature.has_time else 1
        deadline_s = earlier(deadline_s, given.timeout_ms)
        again = (id, given.position, data) if given.position is not None else None
        turn = self._turns.setdefault(id, asyncio.Lock())
        async with turn:
            if again is not None and again in self._ended and not self.registry.directory.has(id):
                kept = schema.ModelInferResponse.FromString(self._ended[again])
                kept.id = request.id
                return kept
            holding = self.registry.holding
            try:
                errors = await (holding.reserve if given.is_start else holding.take_up)([id])
                if id in errors:
                    raise errors[id]
                answer = await step(
                    engine,
                    lambda to: messages.StepRequest(
                        to,
                        id,
                        DataType.DATA_TYPE_UNSPECIFIED,
                        [],
                        data,
                        length,
                        given.is_start,
                        given.position,
                        given.is_end and signature.is_text,
                        deadline_s,
                        given.is_bulk,
                    ),
                )
            except CellarError as error:
                raise _for_sequences(error, given, engine) from None
            # a text that ends no word emits nothing: a tensor without rows
            values = answer.outputs[None] if signature.gives_all(given) else answer.outputs[-1:]
            response = _response(request, engine, [tensors.numbers(signature.outputs[0].name, values)], wanted)
            if given.is_end:
                await ask(engine, lambda sessions: sessions.close(id))
                self._keep(again, response)
        return response

    def _keep(self, key: tuple[str, int, bytes] | None, response: Any) -> None:
        if key is None or len(key[2]) + response.ByteSize() > MAX_ENDED_BYTES:
            return
        self._ended[key] = response.SerializeToString()
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    # -- generation ----------------------------------------------------------------------------------------------

    async def _generate(
        self, request: Any, value: Given, engine: Engine, deadline_s: float, ration: Ration | None
    ) -> AsyncIterator[tuple[list[Output], dict[str, Any]]]:
        """Outputs of each answer, and its parameters; the last one has `finish_reason`, and may have no outputs."""
        sampling = parameters.sampling(request)
        options = Options.from_proto(sampling, engine.manifest.generation, lambda: secrets.randbits(64))
        if ration is not None:
            options = ration.options(sampling.max_steps, options)
        prompt = value.elements[0] if value.elements else b""
        replies = generate(engine, prompt, value.data, options, deadline_s=deadline_s)
        async with aclosing(replies):
            async for reply in replies:
                if ration is not None:
                    ration.emit(len(reply.ids))
                outputs = []
                if reply.ids:
                    outputs = [
                        tensors.numbers("ids", np.array(reply.ids, np.int64)),
                        tensors.numbers("log_probabilities", np.array(reply.log_probabilities, np.float32)),
                    ]
                    if engine.model.vocabulary is not None:
                        outputs.insert(0, tensors.text("text", reply.text))
                finish = {"finish_reason": FINISHES[reply.finish]} if reply.finish else {}
                yield outputs, {"seed": str(reply.seed), **finish}


FINISHES = {1: "end", 2: "max_steps", 3: "stop"}


def _steps(value: Given, signature: Signature, engine: Engine) -> int:
    """Steps (bytes, for text; of a generation one, and its prompt's) that a request brings."""
    if signature.is_decoupled:
        return 1 + (sum(map(len, value.elements)) if engine.manifest.prime.is_recurrent else 0)
    if signature.is_text:
        return sum(len(text) for text in value.elements)
    return value.shape[0] * (value.shape[1] if signature.has_time else 1)


def _for_sequences(error: CellarError, given: Parameters, engine: Engine) -> CellarError:
    """An error in the words that clients of sequence batchers look for."""
    what = f"sequence {given.sequence!r} to model {engine.name!r}"
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


def _response(
    request: Any, engine: Engine, outputs: list[Output], wanted: Sequence[str], params: dict[str, Any] | None = None
) -> Any:
    response = schema.ModelInferResponse(model_name=engine.name, model_version=str(engine.version), id=request.id)
    for output in outputs:
        if not wanted or output.name in wanted:
            response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
            response.raw_output_contents.append(output.data)
    for key, value in (params or {}).items():
        response.parameters[key].string_param = value
    return response


def merged(responses: list[Any]) -> Any:
    """One response of the answers of a generation: texts and numbers behind one another."""
    if len(responses) == 1:
        return responses[0]
    whole = schema.ModelInferResponse()
    whole.CopyFrom(responses[0])
    names = list(dict.fromkeys(output.name for each in responses for output in each.outputs))
    del whole.outputs[:], whole.raw_output_contents[:]
    for each in responses:
        for key, param in each.parameters.items():
            whole.parameters[key].CopyFrom(param)
    for name in names:
        found = [
            (output, data)
            for each in responses
            for output, data in zip(each.outputs, each.raw_output_contents, strict=True)
            if output.name == name
        ]
        if found[0][0].datatype == "BYTES":
            joined = tensors.text(name, b"".join(data[4:] for _, data in found))
            whole.outputs.add(name=name, datatype="BYTES", shape=joined.shape)
            whole.raw_output_contents.append(joined.data)
        else:
            count = sum(output.shape[0] for output, _ in found)
            whole.outputs.add(name=name, datatype=found[0][0].datatype, shape=[count])
            whole.raw_output_contents.append(b"".join(data for _, data in found))
    return whole
