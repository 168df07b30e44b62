"""Requests of the protocol, run by the engines: whole sequences, generations, and chunks by Sequences."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import DataType

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.asking import earlier, generate, predict
from cellar_server.front.oip import parameters, schema, tensors
from cellar_server.front.oip.asked import Asked
from cellar_server.front.oip.parameters import Parameters
from cellar_server.front.oip.sequences import Sequences
from cellar_server.front.oip.signature import Signature
from cellar_server.front.oip.tensors import Output
from cellar_server.front.rations import Ration
from cellar_server.front.registry import Registry
from cellar_server.sampling.sampler import Options
from cellar_server.sessions import messages


class Requests:
    """Runs requests."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._signatures: WeakKeyDictionary[Engine, Signature] = WeakKeyDictionary()
        self.sequences = Sequences(registry)

    def signature(self, engine: Engine) -> Signature:
        """How the protocol sees an engine's model."""
        made = self._signatures.get(engine)
        if made is None:
            made = self._signatures[engine] = Signature.of(engine, self.registry.config)
        return made

    async def answers(
        self, request: Any, given: Parameters, engine: Engine, deadline_s: float, scope: str
    ) -> AsyncIterator[Any]:
        """The ModelInferResponses of a request: one, or one for each emission of a generation. CellarError."""
        asked = Asked.of(request, given, engine, self.signature(engine))
        taken = self.registry.rations.taken(scope, engine.name, asked.rows, asked.steps, request.ByteSize())
        with taken as ration:
            if asked.signature.is_decoupled:
                if given.sequence is not None:
                    raise CellarError(Reason.UNSUPPORTED, "a generation is one request: it takes no sequence_id")
                async for outputs, params in self._generate(asked, deadline_s, ration):
                    yield asked.respond(outputs, params)
            elif given.sequence is None:
                yield asked.respond([await self._predict(asked, deadline_s)])
            else:
                async for response in self.sequences.answers(asked, deadline_s, scope):
                    yield response

    # -- whole sequences -----------------------------------------------------------------------------------------

    async def _predict(self, asked: Asked, deadline_s: float) -> Output:
        value, given, engine, signature = asked.value, asked.given, asked.engine, asked.signature
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

    # -- generation ----------------------------------------------------------------------------------------------

    async def _generate(
        self, asked: Asked, deadline_s: float, ration: Ration | None
    ) -> AsyncIterator[tuple[list[Output], dict[str, Any]]]:
        """Outputs of each answer, and its parameters; the last one has `finish_reason`, and may have no outputs."""
        value, engine = asked.value, asked.engine
        sampling = parameters.sampling(asked.request)
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
