"""Mutated frames against a live server: no crash, no hang, no leak, and every answer has a Reason."""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cellar_proto.v1.inference_pb2 import OpenSessions, StreamRequest, StreamResponse
from cellar_proto.v1.models_pb2 import GetModelRequest
from cellar_proto.v1.models_pb2_grpc import ModelsStub
from cellar_proto.v1.reason_pb2 import Error, Reason
from cellar_server.front.status import ERROR_KEY
from google.protobuf.message import DecodeError

from benchmarks.serving import Served, served
from tests.fakes.zoo import write_counter
from tests.fuzz.mutator import Mutator

FRAMES = int(os.environ.get("CELLAR_FUZZ_FRAMES", "1000000"))
SESSIONS, PER_STREAM, TORN_PER_STREAM = 64, 1000, 10
_REASONS = set(Reason.values())


class Fuzzed:
    """A server that is sent mutated messages, a stream after the other, and what it answered.

    A message that is no protobuf ends its stream, and what was sent behind it is not read. So a stream gets those that
    can be read, as fast as it takes them, and the first of the torn ones get streams of their own.
    """

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
        self.server_cpu_s = 0.0

    def send(self, seed: int, count: int) -> None:
        """`count` messages, about one in a hundred of them torn."""
        num_torn = min(TORN_PER_STREAM, count // 10)
        torn = self._send(seed, count - num_torn, num_torn)
        for data in torn:
            self._tear(data)

    def _tear(self, data: bytes) -> None:
        """A message that cannot be read ends a stream with a session on it, with a Reason."""
        self.sent += 1
        with pytest.raises(grpc.RpcError) as ended:
            for _ in self.stream(iter([_opens(1), data]), timeout=60):
                pass
        metadata = dict(ended.value.trailing_metadata() or ())  # type: ignore[attr-defined]
        assert ERROR_KEY in metadata, str(ended.value)
        assert Error.FromString(metadata[ERROR_KEY]).reason == Reason.INVALID_REQUEST
        self.reasons["torn"] += 1

    def _send(self, seed: int, count: int, num_torn: int) -> list[bytes]:
        """One stream of messages that can be read; the torn ones for other streams."""
        torn: list[bytes] = []
        is_open = threading.Event()
        may_open = threading.Semaphore()
        handles: list[int] = []
        positions: dict[int, int] = {}

        def requests() -> Iterator[bytes]:
            while may_open.acquire(timeout=60) and not is_open.is_set():
                yield _opens(SESSIONS)
            mutator = Mutator(seed, handles, "counter", positions)
            for _ in range(count):
                while _is_torn(data := mutator.message()):
                    torn.append(data)
                self.sent += 1
                yield data
            while len(torn) < num_torn:
                if _is_torn(data := mutator.message()):
                    torn.append(data)

        answers = self.stream(requests(), timeout=300)
        while not is_open.is_set():
            handles.extend(filter(None, next(answers).opened.handles))
            if len(handles) >= SESSIONS:
                is_open.set()
            else:
                time.sleep(0.5)  # what mutated messages opened may fill the table until it expires
            may_open.release()
        for response in answers:
            self._take(response, positions)
        return torn[:num_torn]

    def _take(self, response: StreamResponse, positions: dict[int, int]) -> None:
        """Every error has a Reason, and none is a fault of the server."""
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


def _opens(count: int) -> bytes:
    message = StreamRequest(open=OpenSessions(model="counter", count=count))
    message.open.options.disconnect_grace_s = 0.0
    return message.SerializeToString()


def _is_torn(data: bytes) -> bool:
    try:
        StreamRequest.FromString(data)
    except DecodeError:
        return True
    return False


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
            if seed % 100 == 0:
                print(f"{fuzzed.sent} frames: {dict(fuzzed.reasons.most_common())}", flush=True)
            if not files and fuzzed.sent >= warm:
                files, resident = fuzzed.files(), server.resident_bytes()
        until = time.monotonic() + 30
        while fuzzed.live_sessions() and time.monotonic() < until:
            time.sleep(0.1)
        assert fuzzed.live_sessions() == 0
        fuzzed.server_cpu_s = server.cpu_s()
        assert fuzzed.files() <= files + 2
        assert server.resident_bytes() <= 1.05 * resident + (8 << 20)
        assert server.process.poll() is None
        fuzzed.channel.close()
        assert server.terminate() == 0  # it drains: no stream and no row of work is left
        assert not any("Traceback" in line for line in server.log), list(server.log)
        return fuzzed


def test_two_thousand_mutated_frames(transport: str, tmp_path: Path) -> None:
    fuzzed = fuzz(tmp_path, 2000)
    assert fuzzed.sent == 2000
    # the mutator reaches what there is to refuse
    assert {"answered", "torn", "STALE_HANDLE", "SHAPE_MISMATCH", "INVALID_REQUEST", "POSITION_CONFLICT"} <= set(
        fuzzed.reasons
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_mutated_frames(transport: str, tmp_path: Path) -> None:
    begun = time.process_time()
    fuzzed = fuzz(tmp_path, FRAMES)
    assert fuzzed.sent == FRAMES
    print(f"{transport}: {FRAMES} frames, {time.process_time() - begun:.0f} s of the client's processor time,", end=" ")
    print(f"{fuzzed.server_cpu_s:.0f} s of the server's; {dict(fuzzed.reasons.most_common())}")
