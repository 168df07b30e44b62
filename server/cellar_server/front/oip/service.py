"""inference.GRPCInferenceService: the protocol's calls, handed to the engines and answered in its words."""

from __future__ import annotations

import time
from typing import Any, NoReturn, Protocol

import grpc
from cellar_proto.v1.reason_pb2 import Reason
from google.protobuf import message_factory

from cellar_server import __version__
from cellar_server.errors import CellarError
from cellar_server.front.asking import CALLER
from cellar_server.front.oip import schema, statistics
from cellar_server.front.oip.answers import Answers, abort_in_words
from cellar_server.front.oip.calls import MidstOfCalls
from cellar_server.front.oip.inference import merged
from cellar_server.front.oip.midst import Midst
from cellar_server.front.oip.stream import InferStream
from cellar_server.front.rations import number_of
from cellar_server.front.registry import Registry
from cellar_server.transport.base import Transport

EXTENSIONS = ["sequence", "statistics", "model_configuration", "model_repository"]
# Metadata with which a caller asks for a real status instead of an error message on a stream.
REAL_STATUS = ("triton_grpc_error", "true")


class Host(Protocol):
    """What of the server the protocol may move."""

    @property
    def is_serving(self) -> bool: ...

    @property
    def is_ready(self) -> bool: ...

    async def load_model(self, name: str) -> list[int]: ...

    async def unload_model(self, name: str, version: int = 0, *, wait_s: float, force_reason: str) -> int: ...


class OpenInference:
    """The service."""

    def __init__(self, registry: Registry, host: Host) -> None:
        self.registry = registry
        self.host = host
        self._answers = Answers(registry)
        self._midst = Midst(self._answers, is_last=True)
        registry.watchers.append(self._midst.forget)

    def add_to(self, server: Transport) -> None:
        """Registers every method of the service: ours, or a clear UNIMPLEMENTED."""
        handlers = {}
        for method in schema.SERVICE.methods:
            request = message_factory.GetMessageClass(method.input_type)
            response = message_factory.GetMessageClass(method.output_type)
            ours = getattr(self, method.name, _unsupported)
            is_stream = method.name == "ModelStreamInfer"
            make = grpc.stream_stream_rpc_method_handler if is_stream else grpc.unary_unary_rpc_method_handler
            handlers[method.name] = make(ours, request.FromString, response.SerializeToString)
        name = schema.SERVICE.full_name
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        server.add_registered_method_handlers(name, handlers)
        if self.registry.traces is None:  # else each call has a span of its own
            midst = Midst(self._answers, is_last=False)
            self.registry.watchers.append(midst.forget)
            server.offer(f"/{name}/ModelInfer", MidstOfCalls(self.registry, midst, server).take)

    # -- server and models ---------------------------------------------------------------------------------------

    async def ServerLive(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return schema.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return schema.ServerReadyResponse(ready=self.host.is_ready)

    async def ModelReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            engine = self._answers.find(request.name, request.version, self.registry.callers.of(context))
        except CellarError as error:
            if error.reason not in (Reason.MODEL_NOT_FOUND, Reason.MODEL_BROKEN):
                await abort_in_words(context, error)
            return schema.ModelReadyResponse(ready=False)
        return schema.ModelReadyResponse(ready=self.host.is_serving and engine.is_healthy)

    async def ServerMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return schema.ServerMetadataResponse(name="cellar", version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            engine = self._answers.find(request.name, request.version, self.registry.callers.of(context))
        except CellarError as error:
            await abort_in_words(context, error)
        versions = sorted(version for name, version in self.registry.engines if name == engine.name)
        return self._answers.requests.signature(engine).metadata(engine.name, versions)

    async def ModelConfig(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            engine = self._answers.find(request.name, request.version, self.registry.callers.of(context))
        except CellarError as error:
            await abort_in_words(context, error)
        config = self.registry.config
        return schema.ModelConfigResponse(config=self._answers.requests.signature(engine).config(engine, config))

    async def ModelStatistics(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            caller = self.registry.callers.of(context)
            if request.name:
                engines = [self._answers.find(request.name, request.version, caller)]
            else:
                engines = [
                    engine for _, engine in sorted(self.registry.engines.items()) if caller.may_know(engine.name)
                ]
        except CellarError as error:
            await abort_in_words(context, error)
        made = schema.ModelStatisticsResponse()
        for engine in engines:
            statistics.describe(engine, self._answers.tally(engine), made.model_stats.add())
        return made

    async def RepositoryIndex(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            caller = self.registry.callers.of(context)
        except CellarError as error:
            await abort_in_words(context, error)
        made = schema.RepositoryIndexResponse()
        states = {key: ("READY", "") for key, engine in self.registry.engines.items() if engine.is_healthy}
        if not request.ready:
            states |= {
                key: ("UNAVAILABLE", "the model's engine failed")
                for key, engine in self.registry.engines.items()
                if not engine.is_healthy
            }
            states |= {key: ("UNAVAILABLE", error.message) for key, error in self.registry.broken.items()}
        for (name, version), (state, reason) in sorted(states.items()):
            if not caller.may_know(name):
                continue
            made.models.add(name=name, version=str(version), state=state, reason=reason)
        return made

    async def RepositoryModelLoad(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            self.registry.callers.of(context).must_administer(request.model_name)
            if request.parameters:
                raise CellarError(Reason.UNSUPPORTED, "a model is loaded as its folder says: send no parameters")
            await self.host.load_model(request.model_name)
        except CellarError as error:
            await abort_in_words(context, error)
        return schema.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            self.registry.callers.of(context).must_administer(request.model_name)
            await self.host.unload_model(request.model_name, wait_s=0.0, force_reason="a client asked for it")
        except CellarError as error:
            await abort_in_words(context, error)
        return schema.RepositoryModelUnloadResponse()

    # -- inference -----------------------------------------------------------------------------------------------

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        left = context.time_remaining()
        deadline_s = 0.0 if left is None else time.monotonic() + left
        try:
            caller = self.registry.callers.of(context)
            CALLER.set(number_of(caller.scope, context))
            engine, given = self._answers.read(request, caller)
            answers = self._answers.of(request, engine, given, deadline_s, caller.scope)
            return merged([response async for response in answers])
        except CellarError as error:
            await abort_in_words(context, error)

    async def ModelStreamInfer(self, requests: object, context: grpc.aio.ServicerContext) -> None:
        """Many requests in flight: those of one sequence are answered in their order, others as they finish."""
        is_real = REAL_STATUS in {(key, value) for key, value in context.invocation_metadata() or ()}
        try:
            stream = InferStream(context, self.registry)
        except CellarError as error:
            await abort_in_words(context, error)
        with self.registry.streams.hold(stream):
            await stream.run(self._answers, self._midst, is_real=is_real)


async def _unsupported(request: Any, context: grpc.aio.ServicerContext) -> NoReturn:
    await context.abort(
        grpc.StatusCode.UNIMPLEMENTED,
        "Cellar has no shared memory, and its tracing and logging are set where it is started",
    )
    raise AssertionError("abort returned")
