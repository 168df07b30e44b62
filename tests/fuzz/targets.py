"""What is fuzzed: functions of bytes that come back, whatever the bytes are. Anything but a CellarError is a fault."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.state_pb2 import GenerationState, SessionState
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server import zoo
from cellar_server.errors import CellarError
from cellar_server.front.oip import parameters, schema, tensors
from cellar_server.front.oip.parameters import Parameters
from cellar_server.runtime.graph_file import check_graph
from cellar_server.sessions.messages import AnswerReply, FrameReply, FrameRequest
from google.protobuf.message import DecodeError

from tests.fakes.bench import Bench
from tests.fakes.runtime import counter_model, generator_model
from tests.fakes.zoo import write_counter


def _check(error: CellarError) -> None:
    assert error.reason in Reason.values(), error
    assert error.reason not in (Reason.REASON_UNSPECIFIED, Reason.INTERNAL, Reason.RUN_FAILED), error


def _bench() -> tuple[Bench, list[int]]:
    """A bench of 40 sessions; the same handles each time."""
    bench = Bench(counter_model(), max_sessions=64, max_queue_rows=64, max_chunk=64)
    return bench, bench.open(40)


def frames(data: bytes) -> None:
    """One frame, taken in and run: every row is answered once, nothing stays in the queue."""
    try:
        frame = Frame.FromString(data)
    except DecodeError:
        return
    bench, _ = _bench()
    request = FrameRequest("me", 1, frame, frame.frame_id)
    if len(frame.handles) >= 32:
        bench.sessions.read_large(request)
    bench.sessions.admit([request])
    bench.run(1000)
    answered = 0
    for reply in bench.sessions.take_replies():
        if isinstance(reply, FrameReply):
            _check(reply.error)
            answered += max(1, len(frame.handles))
        else:
            assert isinstance(reply, AnswerReply)
            answered += len(reply.handles)
            for _, error in reply.errors:
                _check(error)
    assert answered == max(1, len(frame.handles))
    assert bench.sessions.core.work.num_used == 0
    assert not bench.sessions.has_ready


def _import(bench: Bench, data: bytes) -> None:
    try:
        state = SessionState.FromString(data)
        info = bench.sessions.import_state(state, "imported")
    except DecodeError:
        return
    except CellarError as error:
        _check(error)
        assert bench.sessions.core.table.num_open == 0
        return
    # what is taken in can be given out again, and closed
    assert bench.sessions.export(info.id).row == state.row
    bench.sessions.close(info.id)
    assert bench.sessions.core.table.num_open == 0


def states(data: bytes) -> None:
    """A state of a session."""
    _import(Bench(counter_model(), max_sessions=4, max_queue_rows=16), data)


def generation_states(data: bytes) -> None:
    """A state of a generation."""
    _import(Bench(generator_model(), max_sessions=4, max_queue_rows=16), data)


def oip(data: bytes) -> None:
    """A request of the Open Inference Protocol, up to what goes to an engine."""
    try:
        request = schema.ModelInferRequest.FromString(data)
    except DecodeError:
        return
    for function in (
        lambda: Parameters.of(request),
        lambda: parameters.sampling(request),
        lambda: tensors.given(request, "x", "FP32", [-1, -1, 2]),
        lambda: tensors.given(request, "x", "INT16", [-1, -1]),
        lambda: tensors.given(request, "text", "BYTES", [-1, 1]),
    ):
        try:
            function()
        except CellarError as error:
            _check(error)


@cache
def _folder() -> Path:
    return write_counter(Path(tempfile.mkdtemp(prefix="cellar-fuzz-")))


def manifests(data: bytes) -> None:
    """A manifest beside a sound graph."""
    entry = _folder()
    (entry / "manifest.json").write_bytes(data)
    try:
        zoo.load(zoo.Entry("counter", 1, entry))
    except CellarError as error:
        _check(error)


def graphs(data: bytes) -> None:
    """A graph file, before it is opened."""
    with suppress(ValueError):
        check_graph(data)


def seeds() -> dict[str, tuple[Callable[[bytes], None], list[bytes]]]:
    """Each target with sound inputs to begin with."""
    _, handles = _bench()
    many = Frame(frame_id=2, handles=handles, positions=[0] * 40, inputs=Tensor(data=bytes(160)))
    some = Frame(frame_id=3, handles=handles[:3], positions=[0] * 3, lengths=[1, 2, 3], inputs=Tensor(data=bytes(24)))
    some.timeouts_ms.append(1000)
    some.priorities.append(1)
    one = Bench(counter_model(), max_sessions=4, max_queue_rows=16)
    (handle,) = one.open()
    one.send([handle], [0], [[1.0, 2.0]])
    one.run()
    state = one.sessions.states.write(0)
    generation = SessionState(format=1, model="generator", version=1, model_sha256=state.model_sha256, position=2)
    generation.row, generation.max_idle_s = bytes(4), 60
    generation.generation.CopyFrom(GenerationState(condition=bytes(4), ids=[1, 2], log_probabilities=[0, 0]))
    request = schema.ModelInferRequest(model_name="counter", id="1")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2, 2])
    request.raw_input_contents.append(bytes(16))
    request.parameters["sequence_id"].int64_param = 5
    request.parameters["sequence_start"].bool_param = True
    request.parameters["temperature"].string_param = "0.5"
    words = schema.ModelInferRequest(model_name="text")
    words.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
    words.raw_input_contents.append(b"\x03\0\0\0abc")
    entry = write_counter(Path(tempfile.mkdtemp(prefix="cellar-fuzz-")))
    return {
        "frames": (frames, [each.SerializeToString() for each in (many, some)]),
        "states": (states, [state.SerializeToString()]),
        "generation_states": (generation_states, [generation.SerializeToString()]),
        "oip": (oip, [each.SerializeToString() for each in (request, words)]),
        "manifests": (manifests, [(entry / "manifest.json").read_bytes()]),
        "graphs": (graphs, [(entry / "model.onnx").read_bytes()]),
    }
