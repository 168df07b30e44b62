"""inference.GRPCInferenceService: the protocol's calls, handed to the engines and answered in its words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, NoReturn, Protocol

import grpc
from cellar_proto.v1.reason_pb2 import Reason
from google.protobuf import message_factory

from cellar_server import __version__
from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.asking import CALLER
from cellar_server.front.callers import Caller
from cellar_server.front.oip import schema, statistics
from cellar_server.front.oip.inference import Requests, merged
from cellar_server.front.oip.parameters import Parameters
from cellar_server.front.rations import number_of
from cellar_server.front.reading import check
from cellar_server.front.registry import Registry
from cellar_server.front.status import abort, unforeseen
from cellar_server.transport.base import Transport

EXTENSIONS = ["sequence", "statistics", "model_configuration", "model_repository"]
# Metadata with which a caller asks for a real status instead of an error message on a stream.
REAL_STATUS = ("triton_grpc_error", "true")
# In place of a response: the stream ends with the error beside it.
END = object()


class Host(Protocol):
    """What of the server the protocol may move."""

    @property
    def is_serving(self) -> bool: ...

    @property
    def is_ready(self) -> bool: ...

    async def load_model(self, name: str) -> list[int]: ...

    async def unload_model(self, name: str, version: int = 0, *, wait_s: float, force_reason: str) -> int: ...


class _Stream:
    """An OpenStream of this protocol. out: responses with their errors, None at the end; tasks: requests in flight.
    Of responses no more wait in `out` than the stream may have frames in flight: a reader that is slow holds up its own
    generations. CellarError UNAUTHENTICATED."""

    def __init__(self, context: grpc.aio.ServicerContext, registry: Registry) -> None:
        self._context, self._callers = context, registry.callers
        self.caller = registry.callers.of(context)
        self.out: asyncio.Queue[Any] = asyncio.Queue()
        self.tasks: set[asyncio.Task[None]] = set()
        self.num_waiting = 0  # responses in `out`
        self._most = registry.config.max_frames_in_flight
        self._is_ending = False
        self._has_room = asyncio.Event()

    async def put(self, response: Any, error: CellarError | None = None) -> None:
        """Puts a response into `out` when there is room."""
        while self.num_waiting >= self._most and not self._is_ending:
            self._has_room.clear()
            await self._has_room.wait()
        self.num_waiting += 1
        self.out.put_nowait((response, error))

    def take(self) -> None:
        """A response was taken out."""
        self.num_waiting -= 1
        self._has_room.set()

    def end_waiting(self) -> None:
        """What is still made is written in the end: nobody waits for room."""
        self._is_ending = True
        self._has_room.set()

    def end(self, error: CellarError) -> None:
        self.out.put_nowait((END, error))

    def check(self) -> None:
        scope = self.caller.scope
        self.caller = self._callers.of(self._context, has_begun=True)
        if self.caller.scope != scope:
            raise CellarError(Reason.UNAUTHENTICATED, "the stream's credentials are another caller's now")


class OpenInference:
    """The service."""

    def __init__(self, registry: Registry, host: Host) -> None:
        self.registry = registry
        self.host = host
        self._requests = Requests(registry)
        self._tallies: dict[tuple[str, int], statistics.Tally] = {}

    def add_to(self, server: Transport) -> None:
        """Registers every method of the service: ours, or a clear UNIMPLEMENTED."""
        handlers = {}
        for method in schema.SERVICE.methods:
            request = message_factory.GetMessageClass(method.input_type)
            response = message_factory.GetMessageClass(method.output_type)
            ours = getattr(self, method.name, None)
            if method.name == "ModelStreamInfer":
                make, function = grpc.stream_stream_rpc_method_handler, self.ModelStreamInfer
            else:
                make, function = grpc.unary_unary_rpc_method_handler, ours or _unsupported
            handlers[method.name] = make(function, request.FromString, response.SerializeToString)
        name = schema.SERVICE.full_name
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        server.add_registered_method_handlers(name, handlers)

    # -- server and models ---------------------------------------------------------------------------------------

    async def ServerLive(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return schema.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return schema.ServerReadyResponse(ready=self.host.is_ready)

    async def ModelReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            engine = self._find(request.name, request.version, self.registry.callers.of(context))
        except CellarError as error:
            if error.reason not in (Reason.MODEL_NOT_FOUND, Reason.MODEL_BROKEN):
                await _abort(context, error)
            return schema.ModelReadyResponse(ready=False)
        return schema.ModelReadyResponse(ready=self.host.is_serving and engine.is_healthy)

    async def ServerMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return schema.ServerMetadataResponse(name="cellar", version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            engine = self._find(request.name, request.version, self.registry.callers.of(context))
        except CellarError as error:
            await _abort(context, error)
        versions = sorted(version for name, version in self.registry.engines if name == engine.name)
        return self._requests.signature(engine).metadata(engine.name, versions)

    async def ModelConfig(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            engine = self._find(request.name, request.version, self.registry.callers.of(context))
        except CellarError as error:
            await _abort(context, error)
        config = self.registry.config
        return schema.ModelConfigResponse(config=self._requests.signature(engine).config(engine, config))

    async def ModelStatistics(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            caller = self.registry.callers.of(context)
            if request.name:
                engines = [self._find(request.name, request.version, caller)]
            else:
                engines = [
                    engine for _, engine in sorted(self.registry.engines.items()) if caller.may_know(engine.name)
                ]
        except CellarError as error:
            await _abort(context, error)
        made = schema.ModelStatisticsResponse()
        for engine in engines:
            statistics.describe(engine, self._tally(engine), made.model_stats.add())
        return made

    async def RepositoryIndex(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            caller = self.registry.callers.of(context)
        except CellarError as error:
            await _abort(context, error)
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
            await _abort(context, error)
        return schema.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            self.registry.callers.of(context).must_administer(request.model_name)
            await self.host.unload_model(request.model_name, wait_s=0.0, force_reason="a client asked for it")
        except CellarError as error:
            await _abort(context, error)
        return schema.RepositoryModelUnloadResponse()

    # -- inference -----------------------------------------------------------------------------------------------

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        left = context.time_remaining()
        deadline_s = 0.0 if left is None else time.monotonic() + left
        try:
            caller = self.registry.callers.of(context)
            CALLER.set(number_of(caller.scope, context))
            engine, given = self._read_request(request, caller)
            answers = self._answers(request, engine, given, deadline_s, caller.scope)
            return merged([response async for response in answers])
        except CellarError as error:
            await _abort(context, error)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Any]:
        """Many requests in flight: those of one sequence are answered in their order, others as they finish."""
        is_real = REAL_STATUS in {(key, value) for key, value in context.invocation_metadata() or ()}
        try:
            stream = _Stream(context, self.registry)
        except CellarError as error:
            await _abort(context, error)
        with self.registry.streams.hold(stream):
            async for response in self._stream(requests, context, stream, is_real):
                yield response

    async def _stream(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext, stream: _Stream, is_real: bool
    ) -> AsyncIterator[Any]:
        out = stream.out
        room = asyncio.Semaphore(self.registry.config.max_frames_in_flight)
        CALLER.set(number_of(stream.caller.scope, context))
        reader = asyncio.ensure_future(self._read(requests, room, stream))
        try:
            while (item := await out.get()) is not None:
                response, error = item
                if response is END:
                    stream.end_waiting()
                    await asyncio.gather(*stream.tasks, return_exceptions=True)
                    while not out.empty() and (item := out.get_nowait()) is not None:
                        if item[0] is not None:
                            yield item[0]
                    await _abort(context, error)
                if error is not None and is_real:
                    await _abort(context, error)
                if response is None:
                    room.release()
                    continue
                stream.take()
                yield response
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[Any], room: asyncio.Semaphore, stream: _Stream) -> None:
        """Starts each request as it comes, while there is room; None in `out` when all are answered."""
        out, tasks = stream.out, stream.tasks
        try:
            async for request in requests:
                await room.acquire()
                task = asyncio.ensure_future(self._answer(request, stream))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            out.put_nowait(None)

    async def _answer(self, request: Any, stream: _Stream) -> None:
        """Puts the answers of one request into the stream's `out`, then (None, None): its place is free."""
        caller = stream.caller
        try:
            check(request)
            engine, given = self._read_request(request, caller)
            wants_empty_final, is_decoupled = given.wants_empty_final, self._requests.signature(engine).is_decoupled
            held = None
            async for response in self._answers(request, engine, given, 0.0, caller.scope):
                if not is_decoupled:
                    held = response
                    continue
                if wants_empty_final:
                    if response.outputs:
                        _flag_final(response, False)
                        await stream.put(schema.ModelStreamInferResponse(infer_response=response))
                    held = response if "finish_reason" in response.parameters else None
                    if held is not None:
                        del held.outputs[:], held.raw_output_contents[:]
                    continue
                # the flag stands on the last response that is not empty: known once the next one is there
                if held is not None and response.outputs:
                    _flag_final(held, False)
                    await stream.put(schema.ModelStreamInferResponse(infer_response=held))
                if held is not None and not response.outputs:
                    for key, param in response.parameters.items():
                        held.parameters[key].CopyFrom(param)
                else:
                    held = response
            if held is not None:
                _flag_final(held, True)
                await stream.put(schema.ModelStreamInferResponse(infer_response=held))
        except CellarError as error:
            response = schema.ModelInferResponse()
            if request is not None:
                response.model_name, response.id = request.model_name, request.id
            response.parameters["reason"].string_param = Reason.Name(error.reason)
            _flag_final(response, True)
            message = schema.ModelStreamInferResponse(error_message=_text(error), infer_response=response)
            await stream.put(message, error)
        finally:
            stream.out.put_nowait((None, None))

    def _read_request(self, request: Any, caller: Caller) -> tuple[Engine, Parameters]:
        """The engine and the parameters of a request. CellarError; one in the parameters counts as a failed request."""
        begun_ns = time.perf_counter_ns()
        caller.must_call(request.model_name)
        engine = self._find(request.model_name, request.model_version, caller)
        try:
            given = Parameters.of(request)
            if given.sequence is not None and not request.model_version:
                engine = self._requests.engine_of(engine, given, caller.scope)
            return engine, given
        except CellarError:
            self._tally(engine).fail_one(begun_ns)
            raise

    async def _answers(
        self, request: Any, engine: Engine, given: Parameters, deadline_s: float, scope: str
    ) -> AsyncIterator[Any]:
        """The responses of a request, counted. CellarError, INTERNAL for what nobody foresaw."""
        begun_ns = time.perf_counter_ns()
        tally = self._tally(engine)
        try:
            async for response in self._requests.answers(request, given, engine, deadline_s, scope):
                yield response
        except CellarError:
            tally.fail_one(begun_ns)
            raise
        except Exception:
            tally.fail_one(begun_ns)
            raise unforeseen("an inference request failed") from None
        rows = request.inputs[0].shape[0] if self._requests.signature(engine).max_batch_size else 1
        tally.succeed(begun_ns, rows)

    # -- finding -------------------------------------------------------------------------------------------------

    def _find(self, name: str, version: str, caller: Caller) -> Engine:
        caller.must_know(name)
        if version and not version.isdecimal():
            raise CellarError(Reason.INVALID_REQUEST, f"a version is a number, not {version!r}")
        return self.registry.find(name, int(version) if version else 0)

    def _tally(self, engine: Engine) -> statistics.Tally:
        return self._tallies.setdefault((engine.name, engine.version), statistics.Tally())


def _flag_final(response: Any, is_final: bool) -> None:
    response.parameters["triton_final_response"].bool_param = is_final


def _text(error: CellarError) -> str:
    """What a client shows: our reason's name, then the message."""
    return f"{Reason.Name(error.reason)}: {error.message}"


async def _abort(context: grpc.aio.ServicerContext, error: CellarError) -> NoReturn:
    await abort(context, error, _text(error))


async def _unsupported(request: Any, context: grpc.aio.ServicerContext) -> NoReturn:
    await context.abort(
        grpc.StatusCode.UNIMPLEMENTED,
        "Cellar has no shared memory, and its tracing and logging are set where it is started",
    )
    raise AssertionError("abort returned")
