"""Bearer tokens: who may call, and whose a session is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import cellar_client
import grpc
import numpy as np
import pytest
from cellar_client.drivers import run
from cellar_server.config import Config
from cellar_server.front.callers import Callers
from cellar_server.runtime.base import StartupError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.contract.conftest import Running
from tests.fakes.zoo import write_counter

ONE = np.ones(2, np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("callers")
    write_counter(folder / "zoo")
    lines = [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}" for name in ("alice", "bob")]
    (folder / "tokens").write_text("\n".join(["# callers", "", *lines]))
    config = Config(
        listen="127.0.0.1:0",
        transport=transport,
        models=folder / "zoo",
        tokens=str(folder / "tokens"),
        store=f"sqlite:///{folder}/s.db",
        durability="step",
    )
    running = Running(config)
    yield running
    running.stop()


def client(server: Running, token: str) -> cellar_client.Client:
    return cellar_client.Client(server.address, token=token, timeout=10)


def test_a_call_without_a_valid_token_is_refused_whatever_it_asks(server: Running) -> None:
    for token in ("", "mallory"):
        with client(server, token) as stranger:
            for verb in (
                lambda: stranger.models(),
                lambda: stranger.sessions(),
                lambda: stranger.predict("counter", ONE),
                lambda: stranger.close_session("x"),
                lambda: next(stranger.generate("counter", "x")),
            ):
                with pytest.raises(cellar_client.errors.Unauthenticated):
                    verb()
    # whether the server lives, anybody may ask
    with grpc.insecure_channel(server.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_foreign_id_answers_exactly_as_an_unknown_one(server: Running) -> None:
    with client(server, "alice") as alice, client(server, "bob") as bob:
        hers = alice.session("counter", id="mine", keep=True)
        hers.step(ONE)
        verbs = {
            "get": lambda who, id: who.resume(id),
            "close": lambda who, id: who.close_session(id),
            "fork": lambda who, id: cellar_client.Session(who, run(who._codec("counter")), id, 0, keep=True).fork(),
            "export": lambda who, id: cellar_client.Session(who, run(who._codec("counter")), id, 0, keep=True).export(),
            "step": lambda who, id: cellar_client.Session(who, run(who._codec("counter")), id, 1, keep=True).step(ONE),
        }
        for name, verb in verbs.items():
            said = []
            for id in ("mine", "none"):
                with pytest.raises(cellar_client.CellarError) as caught:
                    verb(bob, id)
                said.append((type(caught.value), caught.value.message.replace(id, "ID")))
            assert said[0] == said[1], name
        with bob.stream("counter") as stream, pytest.raises(cellar_client.SessionNotFound):
            stream.open(["mine"], resume=True)
        assert bob.sessions() == []
        # the same id is free for everybody else
        his = bob.session("counter", id="mine", keep=True)
        assert his.step(ONE).tolist() == [[1, 1]]
        assert hers.step(ONE).tolist() == [[2, 2]]
        assert [each.id for each in alice.sessions()] == [each.id for each in bob.sessions()] == ["mine"]
        his.close()
        assert alice.resume("mine").position == 2
        with alice.stream("counter") as stream:
            minted = stream.open(2)
            assert {each.id for each in alice.sessions()} == {"mine", *minted}
            stream.close_sessions()
        hers.close()


def test_nobody_names_a_scope(server: Running) -> None:
    with client(server, "alice") as alice, client(server, "bob") as bob:
        alice.session("counter", id="secret", keep=True)
        for id in ("alice\x1fsecret", "bob\x1fx", "\x1fsecret"):
            with pytest.raises(cellar_client.errors.InvalidRequest):
                bob.session("counter", id=id)
            with pytest.raises(cellar_client.SessionNotFound):
                bob.resume(id)
        alice.close_session("secret")


@pytest.mark.parametrize("text", ["nonsense", "ab12 name", hashlib.sha256(b"x").hexdigest()])
def test_a_file_of_tokens_that_is_none_ends_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(StartupError, match="line 1"):
        Callers(Config(tokens=str(tmp_path / "tokens")))
    with pytest.raises(StartupError, match="cannot be read"):
        Callers(Config(tokens=str(tmp_path / "missing")))


@pytest.mark.parametrize("text", ["", "# nobody\n\n"])
def test_a_file_without_callers_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(StartupError, match="names no caller"):
        Callers(Config(tokens=str(tmp_path / "tokens")))
