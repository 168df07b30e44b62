"""Versions of a model come and go beside live sessions."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import cellar_client
import grpc
import numpy as np
import pytest
from cellar_client.cli import main
from cellar_server.config import Config
from cellar_server.sessions.messages import Call

from tests.contract.conftest import Running
from tests.contract.test_stream import Caller, sums
from tests.fakes.zoo import write_counter

ONE = np.ones(2, np.float32)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    write_counter(tmp_path / "zoo")
    return tmp_path / "zoo"


@pytest.fixture
def server(zoo: Path, transport: str) -> Iterator[Running]:
    running = Running(Config(listen="127.0.0.1:0", transport=transport, models=zoo, drain_s=5))
    yield running
    running.stop()


@pytest.fixture
def client(server: Running) -> Iterator[cellar_client.Client]:
    with cellar_client.Client(server.address, timeout=10) as made:
        yield made


def test_a_new_version_takes_the_new_sessions_and_the_old_ones_stay(
    client: cellar_client.Client, zoo: Path, server: Running
) -> None:
    old = client.session("counter")
    old.step(ONE)
    write_counter(zoo, version=2)
    assert client.load("counter") == [1, 2]
    with cellar_client.Client(server.address) as later:
        new = later.session("counter")
        assert {each.id: each.version for each in later.sessions()} == {old.id: 1, new.id: 2}
        assert old.step(ONE).tolist() == [[2, 2]]
        assert new.step(ONE).tolist() == [[1, 1]]
        # the old version is unloaded when its last session is closed
        with pytest.raises(cellar_client.errors.ModelBusy, match="1 open sessions"):
            later.unload("counter", 1)
        assert old.step(ONE).tolist() == [[3, 3]]
        ended: list[int] = []
        unloading = threading.Thread(target=lambda: ended.append(later.unload("counter", 1, wait_s=10)))
        unloading.start()
        time.sleep(0.2)
        with pytest.raises(cellar_client.errors.ShuttingDown, match="being unloaded"):
            later.session("counter", version=1, timeout=0.2)
        assert old.step(ONE).tolist() == [[4, 4]]
        assert unloading.is_alive()
        old.close()
        unloading.join(10)
        assert ended == [0]
        assert [(m.name, m.version) for m in later.models()] == [("counter", 2)]
        new.close()


def test_an_unload_by_force_tells_the_sessions_why(client: cellar_client.Client, zoo: Path) -> None:
    write_counter(zoo, version=2)
    client.load("counter")
    with client.stream("counter") as stream:
        stream.open(3)
        stream.step(np.ones((3, 2), np.float32))
        assert client.unload("counter", 2, force_reason="the weights were wrong") == 3
        for id in stream.ids:
            with pytest.raises(cellar_client.SessionClosed, match="unloaded: the weights were wrong"):
                client.resume(id)
        stream.send(np.ones((3, 2), np.float32))
        with pytest.raises(cellar_client.CellarError):
            stream.receive(1.0).check()
    assert client.model("counter").version == 1
    with pytest.raises(cellar_client.ModelNotFound):
        client.unload("counter", 2)


def test_the_command_line_loads_and_unloads(
    server: Running, zoo: Path, capsys: pytest.CaptureFixture[str], client: cellar_client.Client
) -> None:
    write_counter(zoo, version=2)
    where = ["--server", server.address]
    assert main([*where, "models", "load", "counter"]) == 0
    assert "versions [1, 2]" in capsys.readouterr().out
    session = client.session("counter")
    assert main([*where, "models", "unload", "counter", "--model-version", "2"]) == 1
    assert "MODEL_BUSY" in capsys.readouterr().err
    unload = ["models", "unload", "counter", "--model-version", "2", "--force-reason", "old", "--json"]
    assert main([*where, *unload]) == 0
    assert '{"sessions_ended": 1}' in capsys.readouterr().out
    assert main([*where, "models", "unload"]) == 1
    with pytest.raises(cellar_client.SessionClosed):
        session.info()


def test_health_follows_an_engine_that_stalls(server: Running) -> None:
    (engine,) = server.server.registry.engines.values()
    assert engine.is_healthy
    release = threading.Event()
    engine._stall_s = 0.05
    engine.post(hold(release))
    until = time.monotonic() + 5
    while engine.is_healthy and time.monotonic() < until:
        time.sleep(0.01)
    assert not engine.is_healthy
    release.set()
    while not engine.is_healthy and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.is_healthy


class Nobody:
    """Takes a reply and does nothing with it."""

    def receive(self, reply: object) -> None:
        pass


def hold(release: threading.Event) -> Call:
    """A call that keeps the engine's thread busy until it is released."""
    return Call(Nobody(), lambda sessions: release.wait(10))


def test_a_stream_goes_on_with_a_model_that_was_unloaded_and_loaded_again(
    client: cellar_client.Client, zoo: Path, server: Running
) -> None:
    write_counter(zoo, "other")
    client.load("other")
    with grpc.insecure_channel(server.address) as channel:
        caller = Caller(channel)
        for turn in range(3):
            # the stream's first model is the one that goes: its rows come in that one's lane
            (handle,) = caller.open(model="other", count=1)
            (mate,) = caller.open(model="counter", count=1)
            for position in range(3):
                assert sums(caller.ask([handle], [position], [1.0])) == [position + 1]
                assert sums(caller.ask([mate], [position], [2.0])) == [2 * position + 2]
            assert client.unload("other", force_reason=f"turn {turn}") == 1
            # what is for the other model goes on, also while the lane has no engine
            assert sums(caller.ask([mate], [3], [2.0])) == [8]
            assert client.load("other") == [1]
            assert sums(caller.ask([mate], [4], [2.0])) == [10]
        caller.end()


def test_a_model_that_was_unloaded_is_let_go_of(client: cellar_client.Client, zoo: Path, server: Running) -> None:
    write_counter(zoo, "other")
    engines = []
    with grpc.insecure_channel(server.address) as channel:
        caller = Caller(channel)
        for _ in range(3):
            client.load("other")
            engines.append(weakref.ref(server.server.registry.engines["other", 1]))
            (handle,) = caller.open(model="other", count=1)
            assert sums(caller.ask([handle], [0], [1.0])) == [1]
            client.unload("other", force_reason="once more")
        caller.end()
        assert list(caller.call) == []
    until = time.monotonic() + 10
    while any(each() is not None for each in engines) and time.monotonic() < until:
        gc.collect()
        time.sleep(0.05)
    assert [each() for each in engines] == [None] * 3
