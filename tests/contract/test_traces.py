"""Spans of a real server: what they hang on, what they hold, and that there are none where nobody asked."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import cellar_client
import grpc
import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import GenerateRequest, PredictRequest, StepRequest
from cellar_proto.v1.inference_pb2_grpc import InferenceStub
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server.config import Config
from cellar_server.front.traces import Traces, otlp
from cellar_server.runtime.base import StartupError
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from benchmarks.serving import ZOO
from tests.contract.conftest import Running
from tests.fakes.zoo import write_counter

TRACE, ABOVE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ROWS = np.ones((3, 2), np.float32)
INPUTS = Tensor(shape=[3, 2], data=ROWS.tobytes())


def traceparent(*, is_sampled: bool = True) -> tuple[tuple[str, str]]:
    return (("traceparent", f"00-{TRACE}-{ABOVE}-{'01' if is_sampled else '00'}"),)


class Traced(Running):
    """A server that keeps its spans; of what is drawn every second one is sampled, the first one is."""

    def __init__(self, zoo: Path, transport: str) -> None:
        self.exporter = InMemorySpanExporter()
        draws = cycle([0.0, 0.9])
        self.traces = Traces(SimpleSpanProcessor(self.exporter), 0.5, draw=lambda: next(draws))
        config = Config(listen="127.0.0.1:0", transport=transport, models=zoo, drain_s=2)
        super().__init__(config, traces=self.traces)

    def spans(self, count: int) -> list[ReadableSpan]:
        """So many spans, by their begin; the last ones end a little after their answer."""
        deadline = time.monotonic() + 20
        while len(found := self.exporter.get_finished_spans()) < count:
            assert time.monotonic() < deadline, [span.name for span in found]
            time.sleep(0.01)
        time.sleep(0.05)
        found = self.exporter.get_finished_spans()
        assert len(found) == count, [span.name for span in found]
        return sorted(found, key=lambda span: (span.start_time, -(span.end_time or 0)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Traced]:
    zoo = tmp_path_factory.mktemp("traced")
    write_counter(zoo)
    (zoo / "describe").symlink_to(ZOO / "describe")
    made = Traced(zoo, transport)
    yield made
    made.stop()


@pytest.fixture
def traced(server: Traced) -> Traced:
    server.exporter.clear()
    draws = cycle([0.0, 0.9])
    server.traces._draw = lambda: next(draws)
    return server


@pytest.fixture
def stub(traced: Traced) -> Iterator[InferenceStub]:
    with grpc.insecure_channel(traced.address) as channel:
        yield InferenceStub(channel)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def parent_of(span: ReadableSpan) -> str:
    return f"{span.parent.span_id:016x}" if span.parent else ""


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def assert_is_whole(spans: list[ReadableSpan]) -> None:
    """A call or frame, and in it queue, run and reply, one behind the other without a gap."""
    outer, queue, run, reply = spans
    assert [span.name for span in (queue, run, reply)] == ["queue", "run", "reply"]
    assert {parent_of(span) for span in (queue, run, reply)} == {id_of(outer)}
    assert len({trace_of(span) for span in spans}) == 1
    moments = [queue.start_time, queue.end_time, run.start_time, run.end_time, reply.start_time, reply.end_time]
    assert moments == sorted(moments)  # type: ignore[type-var]
    assert moments[1:5:2] == moments[2:6:2]
    slack_ns = 1_000_000_000  # two clocks are read one after the other, on a machine that may be busy
    assert outer.start_time - slack_ns < moments[0]  # type: ignore[operator]
    assert moments[-1] < outer.end_time + slack_ns  # type: ignore[operator]


def test_a_call_hangs_on_its_callers_span(traced: Traced, stub: InferenceStub) -> None:
    stub.Predict(PredictRequest(model="counter", inputs=INPUTS), metadata=traceparent(), timeout=10)
    spans = traced.spans(4)
    assert_is_whole(spans)
    assert spans[0].name == "cellar.v1.Inference/Predict"
    assert (trace_of(spans[0]), parent_of(spans[0])) == (TRACE, ABOVE)
    assert spans[0].attributes is not None
    assert dict(spans[0].attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "cellar.v1.Inference",
        "rpc.method": "Predict",
    }
    assert spans[2].attributes is not None
    assert dict(spans[2].attributes) == {"cellar.runs": 1, "cellar.rows": 1}
    assert spans[0].resource.attributes["service.name"] == "cellar-server"


def test_a_chunk_by_its_sessions_id_too(traced: Traced, stub: InferenceStub) -> None:
    with cellar_client.Client(traced.address) as client, client.session("counter") as session:
        stub.Step(StepRequest(session_id=session.id, inputs=INPUTS), metadata=traceparent(), timeout=10)
        spans = traced.spans(4)
    assert_is_whole(spans)
    assert spans[0].name == "cellar.v1.Inference/Step"


def test_a_generation_is_one_span_of_many_runs(traced: Traced, stub: InferenceStub) -> None:
    text = (ZOO / "describe" / "1" / "samples" / "acts.txt").read_bytes().splitlines()[0]
    request = GenerateRequest(model="describe", text=text)
    count = sum(len(response.ids) for response in stub.Generate(request, metadata=traceparent(), timeout=30))
    spans = traced.spans(4)
    assert_is_whole(spans)
    assert spans[2].attributes is not None
    assert spans[2].attributes["cellar.runs"] == count + 1  # the last one emitted the end


def test_what_the_caller_left_out_is_left_out(traced: Traced, stub: InferenceStub) -> None:
    request = PredictRequest(model="counter", inputs=INPUTS)
    for _ in range(4):
        stub.Predict(request, metadata=traceparent(is_sampled=False), timeout=10)
    assert traced.spans(0) == []


def test_of_calls_without_a_trace_the_part_is_sampled(traced: Traced, stub: InferenceStub) -> None:
    for _ in range(6):
        stub.Predict(PredictRequest(model="counter", inputs=INPUTS), timeout=10)
    spans = traced.spans(12)
    assert Counter(span.name for span in spans)["cellar.v1.Inference/Predict"] == 3
    assert len({trace_of(span) for span in spans}) == 3


def test_a_refused_call_says_why(traced: Traced, stub: InferenceStub) -> None:
    with pytest.raises(grpc.RpcError):
        stub.Predict(PredictRequest(model="nowhere", inputs=INPUTS), metadata=traceparent(), timeout=10)
    (span,) = traced.spans(1)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "MODEL_NOT_FOUND")
    # no message: it may hold what the caller sent
    assert not span.events


def test_frames_of_a_stream_are_drawn_one_by_one(traced: Traced) -> None:
    with cellar_client.Client(traced.address) as client:
        client._affinity += traceparent()
        client.model("counter")  # not a call about inference
        with client.stream("counter") as stream:
            stream.open(5)
            for _ in range(6):
                stream.step(np.ones((5, 2), np.float32))
            stream.close_sessions()
    spans = traced.spans(1 + 3 * 4)
    outer = [span for span in spans if span.name.endswith("/Stream")]
    frames = [span for span in spans if span.name == "frame"]
    assert len(outer) == 1
    assert len(frames) == 3
    assert (trace_of(outer[0]), parent_of(outer[0])) == (TRACE, ABOVE)
    for frame in frames:
        assert parent_of(frame) == id_of(outer[0])
        assert frame.attributes is not None
        assert dict(frame.attributes) == {"cellar.model": "counter", "cellar.frame_rows": 5}
        inside = [span for span in spans if parent_of(span) == id_of(frame)]
        assert_is_whole([frame, *sorted(inside, key=lambda span: ["queue", "run", "reply"].index(span.name))])


def test_rows_of_many_streams_are_traced_without_being_messages(traced: Traced) -> None:
    transport = getattr(traced.server._grpc, "transport", None)
    before = transport.counters()["rows"] if transport is not None else 0
    with ExitStack() as stack:
        client = stack.enter_context(cellar_client.Client(traced.address))
        client._affinity += traceparent(is_sampled=False)
        streams = [stack.enter_context(client.stream("counter")) for _ in range(4)]
        for stream in streams:
            stream.open(1)
        for _ in range(3):
            for stream in streams:
                stream.send(np.ones((1, 2), np.float32))
            for stream in streams:
                assert not stream.receive().errors
    spans = traced.spans(6 * 4)
    for frame in [span for span in spans if span.name == "frame"]:
        inside = [span for span in spans if parent_of(span) == id_of(frame)]
        assert_is_whole([frame, *sorted(inside, key=lambda span: ["queue", "run", "reply"].index(span.name))])
    if transport is not None:
        assert transport.counters()["rows"] - before == 12
    (engine,) = [each for each in traced.server.registry.engines.values() if each.name == "counter"]
    assert not engine._sessions.core.timings


def test_frames_of_a_stream_that_is_not_sampled_are_traces_of_their_own(traced: Traced) -> None:
    with cellar_client.Client(traced.address) as client:
        client._affinity += traceparent(is_sampled=False)
        with client.stream("counter") as stream:
            stream.open(1)
            for _ in range(4):
                stream.step(np.ones((1, 2), np.float32))
    spans = traced.spans(8)
    frames = [span for span in spans if span.name == "frame"]
    assert len(frames) == len({trace_of(span) for span in spans}) == 2
    assert not any(frame.parent for frame in frames)


def test_a_frame_whose_rows_fail_says_how_many(traced: Traced) -> None:
    with cellar_client.Client(traced.address) as client, client.stream("counter") as stream:
        stream.open(2)
        traced.traces._draw = lambda: 0.0
        with pytest.raises(cellar_client.CellarError):
            stream.step(np.full((2, 2), np.nan, np.float32))
        (frame,) = traced.spans(1)
    assert frame.status.status_code == StatusCode.ERROR
    assert frame.attributes is not None
    assert frame.attributes["cellar.failed_rows"] == 2


def test_nothing_of_a_timed_request_stays_behind(traced: Traced, stub: InferenceStub) -> None:
    traced.traces._draw = lambda: 0.0
    stub.Predict(PredictRequest(model="counter", inputs=INPUTS), timeout=10)
    with cellar_client.Client(traced.address) as client, client.stream("counter") as stream:
        stream.open(3)
        stream.step(np.ones((3, 2), np.float32))
    for engine in traced.server.registry.engines.values():
        assert not engine._sessions.core.timings


def test_without_traces_nothing_of_them_is_imported(running: Running) -> None:
    code = "import sys, cellar_server.server; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
    assert running.server.registry.traces is None


def test_a_collector_that_is_away_holds_up_no_end(tmp_path: Path) -> None:
    write_counter(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        config = Config(listen="127.0.0.1:0", models=tmp_path, drain_s=2, traces=endpoint, trace_sample=1.0)
        running = Running(config)
        with cellar_client.Client(running.address) as client:
            client.predict("counter", ROWS)
        running.stop()  # within the 30 s of `Running.run`
        left = {thread.name for thread in threading.enumerate()}
        assert not {name for name in left if name == "traces" or name.startswith("OtelBatch")}
        assert running.server.life.value == "stopped"


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_part_is_between_none_and_all(ratio: float) -> None:
    with pytest.raises(StartupError, match="trace_sample"):
        Traces(SimpleSpanProcessor(InMemorySpanExporter()), ratio)


def test_spans_reach_a_collector(tmp_path: Path) -> None:
    """Through the real exporter, over gRPC."""
    from concurrent import futures

    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    names: list[str] = []

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):  # type: ignore[no-untyped-def]
            names.extend(span.name for r in request.resource_spans for scope in r.scope_spans for span in scope.spans)
            return trace_service_pb2.ExportTraceServiceResponse()

    collector = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    write_counter(tmp_path)
    traces = Traces(otlp(f"http://127.0.0.1:{port}"), 1.0)
    running = Running(Config(listen="127.0.0.1:0", models=tmp_path, drain_s=2), traces=traces)
    with cellar_client.Client(running.address) as client:
        client.predict("counter", ROWS)
    running.stop()
    collector.stop(1).wait()
    assert Counter(names) == Counter(["cellar.v1.Inference/Predict", "queue", "run", "reply"])
