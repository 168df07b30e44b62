"""Limits of a caller and of a model, over the wire."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import cellar_client
import grpc
import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import CloseSessions, Frame, OpenSessions
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server.config import Config, from_args
from cellar_server.front.readiness import NAME
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.contract.conftest import Running
from tests.contract.test_stream import Caller
from tests.fakes.zoo import write_counter

LIMITS = """
[caller_limits.alice]
max_sessions = 3
max_chunks_in_flight = 8
max_message_bytes = 4096
[caller_limits.carol]
max_steps_per_s = 20
burst_steps = 10
[caller_limits.dave]
max_steps_per_s = 0.001
burst_steps = 5
max_message_bytes = 60
[model_limits.other]
max_sessions = 2
"""
ONE = np.ones(2, np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("limits")
    for name in ("counter", "other"):
        write_counter(folder / "zoo", name)
    names = ("alice", "bob", "carol", "dave")
    (folder / "tokens").write_text("\n".join(f"{hashlib.sha256(n.encode()).hexdigest()} {n}" for n in names))
    (folder / "limits.toml").write_text(LIMITS)
    limits = from_args(["--config", str(folder / "limits.toml")], {})
    running = Running(
        Config(
            listen="127.0.0.1:0",
            transport=transport,
            models=folder / "zoo",
            tokens=str(folder / "tokens"),
            caller_limits=limits.caller_limits,
            model_limits=limits.model_limits,
        )
    )
    yield running
    running.stop()


def client(server: Running, token: str) -> cellar_client.Client:
    return cellar_client.Client(server.address, token=token, timeout=10)


def test_a_callers_sessions_are_counted_over_models_and_a_closed_one_makes_room(server: Running) -> None:
    with client(server, "alice") as alice, client(server, "bob") as bob:
        sessions = [alice.session("counter"), alice.session("counter"), alice.session("other")]
        for each in sessions:
            each.step(ONE)
        with pytest.raises(cellar_client.Overloaded, match="limit of 3") as caught:
            alice.session("counter", id="one-more")
        assert caught.value.retry_after_s
        with pytest.raises(cellar_client.Overloaded):
            sessions[0].fork()
        bob.session("counter", id="one-more").step(ONE)
        sessions[0].close()
        sessions[0] = alice.session("counter", id="one-more")
        sessions[0].step(ONE)
        for each in sessions:
            each.close()


def test_a_models_sessions_are_counted_over_callers(server: Running) -> None:
    with client(server, "bob") as bob, client(server, "carol") as carol:
        kept = [bob.session("other"), carol.session("other")]
        for each in kept:
            each.step(ONE)
        with pytest.raises(cellar_client.Overloaded, match="'other'"):
            bob.session("other")
        for each in kept:
            each.close()


def frame(handles: list[int], position: int, steps: int = 1) -> Frame:
    data = bytes(8 * steps * len(handles))
    return Frame(handles=handles, positions=[position] * len(handles), lengths=[steps], inputs=Tensor(data=data))


def test_a_frame_over_a_limit_is_refused_as_a_whole_and_the_stream_goes_on(server: Running) -> None:
    with grpc.insecure_channel(server.address) as channel:
        caller = Caller(channel, "alice")
        handles = caller.open(model="counter", count=2)
        caller.send(frame=frame(handles, 0, 400))
        assert caller.receive().frame_error.error.reason == Reason.TOO_LARGE
        for position in range(6):  # every answer gives its place back
            caller.send(frame=frame(handles, position))
            assert len(caller.receive().answer.handles) == 2
        caller.send(frame=frame([handles[0]] * 9, 6))
        assert caller.receive().frame_error.error.reason == Reason.TOO_LARGE
        caller.send(close=CloseSessions(handles=handles))
        assert len(caller.receive().closed.handles) == 2
        caller.end()
    server_ration = server.server.registry.rations._callers["alice"]
    assert server_ration.in_flight == 0


def num_rows(server: Running) -> int:
    """Messages that came as rows, where the transport has them."""
    made = getattr(server.server._grpc, "transport", None)
    return made.counters()["rows"] if made is not None else 0


def test_one_chunk_a_message_is_refused_at_the_same_point_whatever_way_it_comes(server: Running) -> None:
    before, counted = num_rows(server), server.server.registry.find("counter").counters().refusals["OVERLOADED"]
    with grpc.insecure_channel(server.address) as channel:
        first, second = Caller(channel, "dave"), Caller(channel, "dave")
        outcomes, positions = [], {}
        for caller in (first, second):
            (positions[caller],) = [dict.fromkeys(caller.open(model="counter", count=1), 0)]
        for number, (caller, steps) in enumerate([(first, 1), (second, 2), (first, 9), (second, 1), (first, 1)] * 2):
            ((handle, position),) = positions[caller].items()
            made = frame([handle], position, steps)
            made.frame_id = number
            caller.send(frame=made)
            answer = caller.receive()
            if answer.WhichOneof("kind") == "answer":
                positions[caller][handle] = answer.answer.positions[0]
                outcomes.append("")
            else:
                assert answer.frame_error.frame_id == number
                outcomes.append(Reason.Name(answer.frame_error.error.reason))
        first.end()
        second.end()
    assert outcomes == ["", "", "TOO_LARGE", "", ""] + ["OVERLOADED"] * 2 + ["TOO_LARGE"] + ["OVERLOADED"] * 2
    meter = server.server.registry.rations._callers["dave"]
    assert meter.in_flight == 0
    assert server.server.registry.find("counter").counters().refusals["OVERLOADED"] == counted + 4
    assert num_rows(server) - before in (0, 10)  # none with grpc.aio


def test_a_rate_is_kept_over_streams_and_calls_and_says_when_to_come_again(server: Running) -> None:
    with grpc.insecure_channel(server.address) as channel, client(server, "carol") as carol:
        caller = Caller(channel, "carol")
        (handle,) = caller.open(model="counter", count=1)
        time.sleep(0.6)  # the bucket is full
        caller.send(frame=frame([handle], 0, 10))
        assert list(caller.receive().answer.positions) == [10]
        caller.send(frame=frame([handle], 10, 5))
        error = caller.receive().frame_error.error
        assert error.reason == Reason.OVERLOADED
        assert 0 < error.retry_after_ms <= 260
        with pytest.raises(cellar_client.Overloaded):
            carol.predict("counter", np.ones((10, 2), np.float32))
        time.sleep(error.retry_after_ms / 1000)
        caller.send(frame=frame([handle], 10, 5))
        assert list(caller.receive().answer.positions) == [15]
        caller.end()


def test_readiness_has_a_name_of_its_own(server: Running) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", NAME):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
        server.server._readiness.is_saturated = True
        server.run(server.server._set_health())
        try:
            assert health.Check(health_pb2.HealthCheckRequest(service=NAME)).status == 2
            assert health.Check(health_pb2.HealthCheckRequest()).status == 1
        finally:
            server.server._readiness.is_saturated = False
            server.run(server.server._set_health())


def test_an_open_over_the_limit_is_refused_row_by_row(server: Running) -> None:
    with grpc.insecure_channel(server.address) as channel:
        caller = Caller(channel, "alice")
        caller.send(open=OpenSessions(frame_id=1, model="counter", count=5))
        opened = caller.receive().opened
        assert [error.error.reason for error in opened.errors] == [Reason.OVERLOADED] * 2
        assert len([handle for handle in opened.handles if handle]) == 3
        caller.end()
