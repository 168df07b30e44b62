"""OpenTelemetry traces: a span for each call or frame that is sampled, and in it what queue, runs and reply took.

Only imported where traces are on. What is sampled: a call whose caller's `traceparent` says so, and of those that come
without one the configured part; of a stream's frames that part, whatever the caller said, for it may have millions.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
from cellar_proto.v1 import inference_pb2
from cellar_proto.v1.inference_pb2 import StreamResponse
from cellar_proto.v1.reason_pb2 import Reason
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cellar_server import __version__
from cellar_server.errors import CellarError
from cellar_server.front.asking import TIMING
from cellar_server.front.inference import Inference
from cellar_server.front.oip import schema
from cellar_server.front.oip.service import OpenInference
from cellar_server.front.registry import Registry
from cellar_server.runtime.base import StartupError
from cellar_server.sessions.timing import Timing

# Seconds that the last spans get to leave when the server stops.
FLUSH_S = 2.0
_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name


def otlp(endpoint: str) -> SpanProcessor:
    """Sends spans in batches to an OTLP collector over gRPC (http://HOST:PORT, or https)."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return _Batches(OTLPSpanExporter(endpoint=endpoint, timeout=5))


class _Batches(BatchSpanProcessor):
    """Batches whose sending can be ended while it tries again."""

    def __init__(self, exporter: SpanExporter) -> None:
        super().__init__(exporter)
        self._given_up = exporter.shutdown

    def give_up(self) -> None:
        """Ends the tries that are under way."""
        self._given_up()


class Traces:
    """Makes the spans. ratio: the part that is sampled, 0 to 1; processor: where they go; draw: numbers in [0, 1)."""

    def __init__(self, processor: SpanProcessor, ratio: float, *, draw: Callable[[], float] = random.random) -> None:
        if not 0 <= ratio <= 1:
            raise StartupError(f"trace_sample: {ratio} is not a part, 0 to 1")
        self._provider = TracerProvider(
            # what is not sampled becomes no span at all
            sampler=ALWAYS_ON,
            resource=Resource({"service.name": "cellar-server", "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._processor = processor
        self.tracer = self._provider.get_tracer("cellar_server", __version__)
        self._ratio = ratio
        self._draw = draw
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Sends what is left, for FLUSH_S, and gives up the rest."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(FLUSH_S)
        if closing.is_alive() and isinstance(self._processor, _Batches):
            self._processor.give_up()
            closing.join(FLUSH_S)

    def is_drawn(self) -> bool:
        """By the configured part."""
        return self._draw() < self._ratio

    def _parent(self, context: grpc.aio.ServicerContext) -> Context:
        carried = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        return self._propagator.extract(carried, context=Context())

    def begin(self, service: str, method: str, context: grpc.aio.ServicerContext) -> Span | None:
        """The span of a call that begins; None where it is not sampled."""
        parent = self._parent(context)
        above = get_current_span(parent).get_span_context()
        if not (above.trace_flags.sampled if above.is_valid else self.is_drawn()):
            return None
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        return self.tracer.start_span(f"{service}/{method}", parent, SpanKind.SERVER, attributes)

    def stream(self, context: grpc.aio.ServicerContext) -> StreamTrace:
        """The spans of a stream that begins."""
        return StreamTrace(self, context)

    @contextmanager
    def call(self, service: str, method: str, context: grpc.aio.ServicerContext) -> Iterator[None]:
        """Traces what is done in it as one call, where it is sampled. What it asks of an engine is timed."""
        span = self.begin(service, method, context)
        if span is None:
            yield
            return
        timing = Timing()
        token = TIMING.set(timing)
        try:
            yield
        except BaseException as error:
            span.set_status(Status(StatusCode.ERROR, _what(error)))
            raise
        finally:
            try:
                TIMING.reset(token)
            except ValueError:  # a generator that is closed from elsewhere
                TIMING.set(None)
            self.finish(span, timing)

    def finish(self, span: Span, timing: Timing, attributes: Mapping[str, Any] | None = None) -> None:
        """Ends the span of a call or frame with what its engine took the time of."""
        now = time.monotonic()
        offset_ns = time.time_ns() - int(1e9 * now)  # of the wall's clock
        inside = set_span_in_context(span, Context())
        if timing.taken_s:
            self._add("queue", inside, offset_ns, timing.taken_s, timing.began_s or now)
        if timing.began_s:
            ended_s = timing.ended_s or now
            self._add("run", inside, offset_ns, timing.began_s, ended_s, runs=timing.runs, rows=timing.rows)
        if timing.ended_s:
            self._add("reply", inside, offset_ns, timing.ended_s, now)
        span.set_attributes(dict(attributes or {}))
        span.end()

    def _add(self, name: str, inside: Context, offset_ns: int, begun_s: float, ended_s: float, **counts: int) -> None:
        attributes = {f"cellar.{key}": count for key, count in counts.items()}
        begun_ns, ended_ns = (offset_ns + int(1e9 * moment_s) for moment_s in (begun_s, ended_s))
        self.tracer.start_span(name, inside, attributes=attributes, start_time=begun_ns).end(ended_ns)


class StreamTrace:
    """The spans of one stream: its own, as long as it lives, and those of the frames that are drawn."""

    def __init__(self, traces: Traces, context: grpc.aio.ServicerContext) -> None:
        self._traces = traces
        self._span = traces.begin(_SERVICE, "Stream", context)
        self._frames: dict[int, tuple[Span, Timing]] = {}

    def begin(self, frame_id: int, model: str, rows: int) -> Timing | None:
        """A frame came; its timing, where it is drawn. It is a child of its stream's span; of a stream that is not
        sampled, a trace of its own."""
        if not self._traces.is_drawn():
            return None
        self._end(frame_id)
        attributes: dict[str, Any] = {"cellar.model": model, "cellar.frame_rows": rows}
        inside = Context() if self._span is None else set_span_in_context(self._span, Context())
        span, timing = self._traces.tracer.start_span("frame", inside, SpanKind.SERVER, attributes), Timing()
        self._frames[frame_id] = span, timing
        return timing

    def write(self, response: StreamResponse, unanswered: Mapping[int, Any]) -> None:
        """A message was written: frames that have nothing unanswered are over."""
        if not self._frames:
            return
        kind = response.WhichOneof("kind")
        message = getattr(response, kind)
        for frame_id in set(message.frame_ids) if kind == "answer" else {message.frame_id}:
            if frame_id not in unanswered:
                failed = len(message.errors) if kind == "answer" else int(kind == "frame_error")
                self._end(frame_id, {"cellar.failed_rows": failed} if failed else None)

    def _end(self, frame_id: int, attributes: Mapping[str, Any] | None = None) -> None:
        span, timing = self._frames.pop(frame_id, (None, None))
        if span is not None and timing is not None:
            if attributes:
                span.set_status(Status(StatusCode.ERROR))
            self._traces.finish(span, timing, attributes)

    def answer(self, frame_id: int, *, has_failed: bool) -> None:
        """A frame of one row is answered, which came without its stream; from any thread."""
        self._end(frame_id, {"cellar.failed_rows": 1} if has_failed else None)

    def close(self) -> None:
        """The stream has ended, and with it what was not answered."""
        for frame_id in list(self._frames):
            self._end(frame_id, {"cellar.is_unanswered": True})
        if self._span is not None:
            self._span.end()


class TracedInference(Inference):
    """The same service, its calls traced; frames are by StreamSession. The registry has the traces."""

    async def Predict(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        with _of(self.registry).call(_SERVICE, "Predict", context):
            return await super().Predict(request, context)

    async def Step(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        with _of(self.registry).call(_SERVICE, "Step", context):
            return await super().Step(request, context)

    async def Generate(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        with _of(self.registry).call(_SERVICE, "Generate", context):
            async with aclosing(super().Generate(request, context)) as responses:  # type: ignore[type-var]
                async for response in responses:
                    yield response


class TracedOpenInference(OpenInference):
    """The same service, its unary calls traced."""

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        with _of(self.registry).call(schema.SERVICE.full_name, "ModelInfer", context):
            return await super().ModelInfer(request, context)


def _of(registry: Registry) -> Traces:
    assert registry.traces is not None
    return registry.traces


def _what(error: BaseException) -> str:
    """The Reason that a call ended with; of another end its kind."""
    cause = error if isinstance(error, CellarError) else error.__context__
    return Reason.Name(cause.reason) if isinstance(cause, CellarError) else type(error).__name__
