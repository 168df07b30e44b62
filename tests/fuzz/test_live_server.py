"""Mutated frames against a live server: no crash, no hang, no leak, and every answer has a Reason."""

from __future__ import annotations

import collections
import os
import threading
import time
from pathlib import Path

import grpc
import pytest
from cellar_proto.v1.inference_pb2 import OpenSessions, StreamRequest, StreamResponse
from cellar_proto.v1.models_pb2 import GetModelRequest
from cellar_proto.v1.models_pb2_grpc import ModelsStub
from cellar_proto.v1.reason_pb2 import Error, Reason
from cellar_server.front.status import ERROR_KEY

from benchmarks.serving import Served, served
from tests.fakes.zoo import write_counter
from tests.fuzz.mutator import Mutator

FRAMES = int(os.environ.get("CELLAR_FUZZ_FRAMES", "1000000"))
SESSIONS, PER_STREAM = 64, 2000
_REASONS = set(Reason.values())


class Fuzzed:
    """A server that is sent mutated messages, a stream after the other, and what it answered."""

    def __init__(self, server: Served) -> None:
        self.server = server
        self.channel = grpc.insecure_channel(server.address)
        self.stream = self.channel.stream_stream(
            "/cellar.v1.Inference/Stream",
            request_serializer=lambda data: data,
            response_deserializer=StreamResponse.FromString,
        )
        self.reasons: collections.Counter[str] = collections.Counter()
        self.sent = 0

    def send(self, seed: int, count: int) -> None:
        """One stream of `count` messages, or up to one that is no protobuf: that ends it, with a Reason."""
        try:
            self._send(seed, count)
            return
        except grpc.RpcError as error:
            metadata, said = dict(error.trailing_metadata() or ()), str(error)  # type: ignore[attr-defined]
        assert ERROR_KEY in metadata, said
        assert Error.FromString(metadata[ERROR_KEY]).reason == Reason.INVALID_REQUEST
        self.reasons["torn"] += 1

    def _send(self, seed: int, count: int) -> None:
        opens = StreamRequest(open=OpenSessions(model="counter", count=SESSIONS))
        opens.open.options.disconnect_grace_s = 0.0
        ready: list[bytes] = [opens.SerializeToString()]
        is_open = threading.Event()
        handles: list[int] = []
        positions: dict[int, int] = {}

        def requests():  # type: ignore[no-untyped-def]
            yield ready[0]
            assert is_open.wait(30)
            mutator = Mutator(seed, handles, "counter", positions)
            for _ in range(count):
                self.sent += 1
                yield mutator.message()

        answers = self.stream(requests(), timeout=110)
        handles.extend(next(answers).opened.handles)
        is_open.set()
        for response in answers:
            kind = response.WhichOneof("kind")
            assert kind is not None
            message = getattr(response, kind)
            errors = [message.error] if kind == "frame_error" else [row.error for row in message.errors]
            for error in errors:
                assert error.reason in _REASONS, error
                assert error.reason != Reason.REASON_UNSPECIFIED, error
                assert error.reason not in (Reason.INTERNAL, Reason.RUN_FAILED), error
                self.reasons[Reason.Name(error.reason)] += 1
            if kind == "answer":  # most frames go on where their sessions stand, so that there is something to spoil
                positions.update({h: p for h, p in zip(message.handles, message.positions, strict=True) if p})
                self.reasons["answered"] += len(message.handles) - len(message.errors)
            if kind == "opened":  # what was opened goes with the stream only where it says so
                self.reasons["opened"] += len(message.handles)

    def live_sessions(self) -> int:
        model = ModelsStub(self.channel).GetModel(GetModelRequest(name="counter"), timeout=10)
        return model.counters.sessions_live

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))


def fuzz(tmp_path: Path, frames: int) -> Fuzzed:
    write_counter(tmp_path / "zoo")
    # a session that a mutated open made is left over until it expires
    with served(tmp_path / "zoo", extra=["--max-sessions", "4096", "--max-idle-s", "2"]) as server:
        fuzzed = Fuzzed(server)
        warm = min(frames // 4, 60_000)
        seed = 0
        files = resident = 0
        while fuzzed.sent < frames:
            fuzzed.send(seed, min(PER_STREAM, frames - fuzzed.sent))
            seed += 1
            if not files and fuzzed.sent >= warm:
                files, resident = fuzzed.files(), server.resident_bytes()
        until = time.monotonic() + 30
        while fuzzed.live_sessions() and time.monotonic() < until:
            time.sleep(0.1)
        assert fuzzed.live_sessions() == 0
        assert fuzzed.files() <= files + 2
        assert server.resident_bytes() <= 1.05 * resident + (8 << 20)
        assert server.process.poll() is None
        fuzzed.channel.close()
        assert server.terminate() == 0  # it drains: no stream and no row of work is left
        assert not any("Traceback" in line for line in server.log), list(server.log)
        return fuzzed


def test_two_thousand_mutated_frames(tmp_path: Path) -> None:
    fuzzed = fuzz(tmp_path, 2000)
    assert fuzzed.sent == 2000
    # the mutator reaches what there is to refuse
    assert {"answered", "torn", "STALE_HANDLE", "SHAPE_MISMATCH", "INVALID_REQUEST", "POSITION_CONFLICT"} <= set(
        fuzzed.reasons
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_mutated_frames(tmp_path: Path) -> None:
    fuzzed = fuzz(tmp_path, FRAMES)
    assert fuzzed.sent == FRAMES
    print(fuzzed.reasons)
