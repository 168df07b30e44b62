"""Inference: Predict, Generate and Stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc
from cellar_proto.v1 import inference_pb2_grpc
from cellar_proto.v1.inference_pb2 import (
    GenerateRequest,
    GenerateResponse,
    PredictRequest,
    PredictResponse,
    Priority,
    StepRequest,
    StepResponse,
    StreamRequest,
)
from cellar_proto.v1.manifest_pb2 import Mode
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import Tensor

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.asking import CALLER, earlier, generate, predict, step
from cellar_server.front.callers import Caller
from cellar_server.front.messages import row_errors, tensor
from cellar_server.front.rations import number_of
from cellar_server.front.reading import check
from cellar_server.front.registry import Registry
from cellar_server.front.status import abort
from cellar_server.front.streams import StreamSession
from cellar_server.sampling.sampler import Options
from cellar_server.sessions import messages

if TYPE_CHECKING:
    from cellar_server.front.lanes import Lanes


def _deadline(context: grpc.aio.ServicerContext, timeout_ms: int) -> float:
    """The earlier of a request's timeout and its call's deadline, on the monotonic clock; 0 for none."""
    left = context.time_remaining()
    return earlier(0.0 if left is None else time.monotonic() + left, timeout_ms)


class Inference(inference_pb2_grpc.InferenceServicer):
    """See inference.proto."""

    def __init__(self, registry: Registry, lanes: Lanes | None = None) -> None:
        self.registry = registry
        self._lanes = lanes

    async def Predict(self, request: PredictRequest, context: grpc.aio.ServicerContext) -> PredictResponse:
        try:
            caller = self._enter(context)
            caller.must_call(request.model)
            engine = self.registry.find(request.model, request.version)
            lengths = list(request.lengths)
            shape = list(request.inputs.shape)
            if not lengths:
                total = _length(engine, request.inputs)
                if not total:
                    raise CellarError(Reason.EMPTY_INPUT, "the call holds no sequence")
                lengths = [total]
            mode = engine.manifest.mode
            everything = (
                request.all_emissions
                if request.HasField("all_emissions")
                else mode not in (Mode.ONE_TO_ONE, Mode.MANY_TO_ONE)
            )
            deadline_s = _deadline(context, request.timeout_ms)
            with self.registry.rations.taken(caller.scope, engine.name, len(lengths), sum(lengths), request.ByteSize()):
                reply = await predict(
                    engine,
                    lambda to: messages.PredictRequest(
                        to,
                        lengths,
                        request.inputs.dtype,
                        shape,
                        request.inputs.data,
                        everything,
                        deadline_s,
                        request.is_bulk,
                    ),
                )
        except CellarError as error:
            await abort(context, error)
        assert reply.outputs is not None  # it has no error
        return PredictResponse(
            version=engine.version,
            lengths=reply.lengths,
            outputs=tensor(reply.outputs),
            errors=row_errors(reply.errors),
        )

    async def Step(self, request: StepRequest, context: grpc.aio.ServicerContext) -> StepResponse:
        try:
            caller = self._enter(context)
            id = caller.id_of(request.session_id)
            engine = await self.registry.holding.engine_of(id)
            caller.must_call(engine.name)
            inputs = request.inputs
            length = request.length or _length(engine, inputs)
            deadline_s = _deadline(context, request.timeout_ms)
            with self.registry.rations.taken(caller.scope, engine.name, 1, length, request.ByteSize()):
                reply = await step(
                    engine,
                    lambda to: messages.StepRequest(
                        to,
                        id,
                        inputs.dtype,
                        list(inputs.shape),
                        inputs.data,
                        length,
                        position=request.position if request.HasField("position") else None,
                        ends=request.ends,
                        deadline_s=deadline_s,
                        is_bulk=request.priority == Priority.BULK,
                    ),
                )
        except CellarError as error:
            await abort(context, error)
        return StepResponse(
            position=reply.positions[0],
            durable_position=reply.durable[0] if reply.durable else 0,
            outputs=tensor(reply.outputs),
        )

    async def Generate(
        self, request: GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[GenerateResponse]:
        try:
            check(request)
            caller = self._enter(context)
            session_id = request.session_id and caller.id_of(request.session_id)
            engine = await self._generator(request, session_id, caller)
            caller.must_call(engine.name)
            if not engine.manifest.HasField("generation"):
                raise CellarError(Reason.UNSUPPORTED, f"model {request.model!r} does not generate")
            options = Options.from_proto(request.sampling, engine.manifest.generation, lambda: secrets.randbits(64))
            # what a sequence primes with are steps as its emissions are
            steps = 1 + (len(request.text) if engine.manifest.prime.is_recurrent else 0)
            with self.registry.rations.taken(caller.scope, engine.name, 1, steps, request.ByteSize()) as ration:
                if ration is not None:
                    options = ration.options(request.sampling.max_steps, options)
                replies = generate(
                    engine,
                    request.text,
                    request.condition.data,
                    options,
                    session_id=session_id,
                    position=request.position,
                    deadline_s=_deadline(context, request.timeout_ms),
                    num_alternatives=request.num_alternatives,
                    next_id=request.next_id if request.HasField("next_id") else None,
                    # alternatives are those of a message's last step: who asks for them wants each step's
                    joins=not request.num_alternatives,
                )
                async with aclosing(replies):
                    async for reply in replies:
                        if ration is not None:
                            ration.emit(len(reply.ids))
                        yield GenerateResponse(
                            ids=reply.ids,
                            log_probabilities=reply.log_probabilities,
                            text=reply.text,
                            position=reply.position,
                            finish=reply.finish,
                            seed=reply.seed,
                            version=engine.version,
                            alternatives=reply.alternatives,
                        )
        except CellarError as error:
            await abort(context, error)

    def _enter(self, context: grpc.aio.ServicerContext) -> Caller:
        """Whose call this is, and who takes its turns from here on."""
        caller = self.registry.callers.of(context)
        CALLER.set(number_of(caller.scope, context))
        return caller

    async def _generator(self, request: GenerateRequest, session_id: str, caller: Caller) -> Engine:
        """The engine of a generation: that of its session, or of the model for a new one."""
        holding = self.registry.holding
        if not session_id:
            caller.must_call(request.model)
            return self.registry.find(request.model, request.version)
        errors = await (holding.take_up if request.position else holding.reserve)([session_id])
        if session_id in errors:
            raise errors[session_id]
        if holding.directory.has(session_id):
            return holding.directory.engine_of(session_id)
        caller.must_call(request.model)
        return self.registry.find_for_new(request.model, request.version)

    async def Stream(self, requests: AsyncIterator[StreamRequest], context: grpc.aio.ServicerContext) -> None:
        try:
            stream = StreamSession(context, self.registry, self._lanes)
        except CellarError as error:
            await abort(context, error)
        with self.registry.streams.hold(stream):
            try:
                await stream.run()
            except CellarError as error:
                await abort(context, error)


def _length(engine: Engine, inputs: Tensor) -> int:
    """Steps (bytes for text, samples for PCM) in a tensor."""
    if inputs.shape:
        return int(inputs.shape[0])
    return len(inputs.data) // (1 if engine.model.text is not None else _unit_bytes(engine))


def _unit_bytes(engine: object) -> int:
    runtime = engine.model.runtime  # type: ignore[attr-defined]
    size = runtime.input_dtype.itemsize
    if engine.model.pcm is not None:  # type: ignore[attr-defined]
        return int(size)
    for axis in runtime.input_shape:
        size *= axis
    return size
