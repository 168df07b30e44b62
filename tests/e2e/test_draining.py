"""SIGTERM and SIGHUP to real processes: who is told what, and that the process always ends."""

from __future__ import annotations

import hashlib
import queue
import signal
import threading
import time
from pathlib import Path

import cellar_client
import grpc
import numpy as np
import pytest
from cellar_client.errors import ShuttingDown, from_rpc
from cellar_proto.v1.inference_pb2 import StreamRequest
from cellar_proto.v1.inference_pb2_grpc import InferenceStub
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from benchmarks.serving import served
from tests.fakes.zoo import write_counter

ONE = np.ones(2, np.float32)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    write_counter(tmp_path / "zoo")
    return tmp_path / "zoo"


class Call:
    """A Stream call whose requests come from a queue and never end by themselves."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._requests: queue.SimpleQueue[StreamRequest | None] = queue.SimpleQueue()
        self.responses = InferenceStub(channel).Stream(iter(self._requests.get, None))

    def open(self) -> int:
        request = StreamRequest()
        request.open.frame_id, request.open.model, request.open.count = 1, "counter", 1
        self._requests.put(request)
        return next(self.responses).opened.handles[0]

    def send(self, handle: int, position: int, steps: int) -> None:
        request = StreamRequest()
        frame = request.frame
        frame.frame_id, frame.handles[:], frame.positions[:], frame.lengths[:] = 2, [handle], [position], [steps]
        frame.inputs.data = np.ones((steps, 2), np.float32).tobytes()
        self._requests.put(request)

    def close(self) -> None:
        self._requests.put(None)
        self.responses.cancel()


def test_health_and_streams_are_told_and_the_process_ends(zoo: Path) -> None:
    said: list[str] = []
    errors: list[cellar_client.CellarError] = []

    def watch(channel: grpc.Channel) -> None:
        try:
            for answer in HealthStub(channel).Watch(HealthCheckRequest()):
                said.append(HealthCheckResponse.ServingStatus.Name(answer.status))
        except grpc.RpcError:
            pass

    def read(call: Call) -> None:
        try:
            list(call.responses)
        except grpc.RpcError as error:
            said.append("stream")
            errors.append(from_rpc(error))

    with served(zoo) as server, grpc.insecure_channel(server.address) as channel:
        calls = [Call(channel) for _ in range(3)]
        handle = calls[0].open()
        calls[0].send(handle, 0, 1)
        assert next(calls[0].responses).answer.positions[:] == [1]
        threads = [threading.Thread(target=watch, args=(channel,))]
        threads += [threading.Thread(target=read, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 10
        while "SERVING" not in said and time.monotonic() < until:
            time.sleep(0.01)
        assert server.terminate() == 0
        for thread in threads:
            thread.join(10)
        # in which order the server says it, tests/contract/test_order.py knows: here several threads listen
        assert said[0] == "SERVING"
        assert sorted(said[1:]) == ["NOT_SERVING", "stream", "stream", "stream"]
        # told to come back: not a bare end of the connection
        for error in errors:
            assert isinstance(error, ShuttingDown)
            assert error.retry_after_s == 1.0
        for call in calls:
            call.close()
        assert server.is_gone()


def test_a_caller_who_never_reads_does_not_hold_the_process_and_state_is_kept(zoo: Path, tmp_path: Path) -> None:
    store = ["--store", f"sqlite:///{tmp_path}/s.db", "--durability", "interval", "--drain-s", "2"]
    with served(zoo, extra=store) as server, cellar_client.Client(server.address) as client:
        with client.session("counter", id="kept", keep=True) as session:
            session.step(ONE)
            session.step(ONE)
        with grpc.insecure_channel(server.address) as channel:
            call = Call(channel)
            handle = call.open()
            for i in range(40):  # answers of 128 KiB each, more than a connection holds
                call.send(handle, i * 16384, 16384)
            time.sleep(0.5)
            assert server.terminate() == 0
            call.close()
        assert any("stopped" in line for line in server.log)
    with served(zoo, extra=store) as server, cellar_client.Client(server.address) as client:
        assert client.resume("kept").step(ONE).tolist() == [[3, 3]]


def test_sessions_and_streams_of_the_client_go_on_at_another_server(zoo: Path) -> None:
    rows = np.ones((4, 2), np.float32)
    with (
        served(zoo) as first,
        served(zoo) as second,
        cellar_client.Client([first.address, second.address], timeout=20) as client,
    ):
        frames, session = client.stream("counter"), client.session("counter")
        frames.open(4)
        for _ in range(3):
            frames.step(rows)
            session.step(ONE)
        waiting: list[object] = []
        thread = threading.Thread(target=lambda: waiting.extend(frames.step(rows).outputs.tolist()))
        assert first.terminate() == 0
        thread.start()
        thread.join(20)
        assert waiting == [[4, 4]] * 4
        assert session.step(ONE).tolist() == [[4, 4]]
        with cellar_client.Client(second.address) as other:
            assert len(other.sessions()) == 5
        frames.close()


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"{hashlib.sha256(b'old').hexdigest()} alice\n")
    return path


def test_sighup_reads_tokens_again_and_streams_live_on(zoo: Path, tokens: Path) -> None:
    def may_call(address: str, token: str) -> bool:
        with cellar_client.Client(address, token=token) as client:
            try:
                return bool(client.models())
            except cellar_client.Unauthenticated:
                return False

    extra = ["--tokens", str(tokens), "--log-level", "info"]
    with served(zoo, extra=extra) as server, cellar_client.Client(server.address, token="old") as client:
        with client.session("counter") as session:
            session.step(ONE)
            tokens.write_text("".join(f"{hashlib.sha256(t).hexdigest()} alice\n" for t in (b"old", b"new")))
            server.process.send_signal(signal.SIGHUP)
            until = time.monotonic() + 10
            while not may_call(server.address, "new") and time.monotonic() < until:
                time.sleep(0.02)
            assert may_call(server.address, "new")
            assert session.step(ONE).tolist() == [[2, 2]]
        assert any("configuration: listen=" in line for line in server.log)
        assert server.terminate() == 0
