"""The real nginx and HAProxy, with the configurations of deploy/, before two real servers: a client's sessions stay on
one of them, and go on at the other when it is killed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cellar_client
import numpy as np
import pytest

from benchmarks import network
from benchmarks.serving import ROOT
from tests.e2e.cluster import Host, Redis, free_port, needs_redis, running, undisturbed

DEPLOY = ROOT / "deploy"
PROGRAMS = {"nginx": DEPLOY / "nginx" / "nginx.conf", "haproxy": DEPLOY / "haproxy" / "haproxy.cfg"}


def find(name: str) -> str | None:
    """Daemons are not on everybody's path."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


class Balancer:
    """nginx or haproxy with the configuration of deploy/, its addresses replaced by those of a test."""

    def __init__(self, name: str, folder: Path, servers: list[str]) -> None:
        program = find(name)
        assert program is not None
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        text = PROGRAMS[name].read_text()
        swaps = {"cellar-1:50051": servers[0], "cellar-2:50051": servers[1]}
        if name == "nginx":
            swaps |= {"listen 50050": f"listen {self.address}", "/tmp/nginx": str(folder / "nginx")}
        else:
            swaps |= {"bind :50050": f"bind {self.address}"}
        for old, new in swaps.items():
            assert old in text
            text = text.replace(old, new)
        path = folder / PROGRAMS[name].name
        path.write_text(text)
        flags = ["-c", str(path), "-g", "daemon off;"] if name == "nginx" else ["-db", "-f", str(path)]
        self._log = (folder / "log").open("w+")
        self.process = subprocess.Popen([program, *flags], stdout=self._log, stderr=self._log)
        until = time.monotonic() + 20
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        self.close()
        raise RuntimeError((folder / "log").read_text())

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


@pytest.fixture(params=list(PROGRAMS))
def balancer(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if find(name) is None:
        pytest.skip(f"{name} is not installed (Debian: {name})")
    return name


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balanced-zoo")
    network.write_entry(folder)
    return folder


@pytest.fixture(scope="module")
def plain(zoo: Path) -> Iterator[tuple[Host, Host]]:
    """Two servers that know nothing of one another."""
    a, b = Host(zoo), Host(zoo)
    with running(a, b):
        yield a, b


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((40, network.WIDTH), np.float32)


def ids_at(host: Host) -> set[str]:
    with cellar_client.Client(host.address) as client:
        return {session.id for session in client.sessions()}


def counters(host: Host) -> dict[str, object]:
    with cellar_client.Client(host.address) as client:
        return client.model(network.NAME).counters


def steps_of(host: Host) -> int:
    return int(counters(host)["steps"])  # type: ignore[call-overload]


def test_a_clients_sessions_stay_on_one_server(
    balancer: str, plain: tuple[Host, Host], tmp_path: Path, rows: np.ndarray
) -> None:
    """Without a store nobody else could answer: every verb must come to the server that has the session."""
    found = Balancer(balancer, tmp_path, [host.address for host in plain])
    whole = undisturbed(plain[0].address, network.NAME, rows)
    used: set[int] = set()
    try:
        for number in range(12):
            with cellar_client.Client(found.address, affinity=f"caller-{number}") as client:
                sessions = [client.session(network.NAME, id=f"{balancer}-{number}-{i}") for i in range(3)]
                outputs = [[session.step(row) for row in rows[:5]] for session in sessions]
                for each in outputs:
                    np.testing.assert_array_equal(np.concatenate(each), whole[:5])
                places = [{s.id for s in sessions} & ids_at(host) for host in plain]
                assert {len(place) for place in places} == {0, 3}
                used.add(0 if places[0] else 1)
                # another client with this key comes to the same server
                with cellar_client.Client(found.address, affinity=f"caller-{number}") as other:
                    resumed = other.resume(sessions[0].id)
                    np.testing.assert_array_equal(np.asarray(resumed.step(rows[5:8])), whole[5:8])
                    copy = resumed.fork()
                    np.testing.assert_array_equal(np.asarray(copy.step(rows[8:9])), whole[8:9])
                    copy.close()
                for session in sessions[1:]:
                    session.close()
                client.close_session(sessions[0].id)
        assert used == {0, 1}
        assert not ids_at(plain[0]) | ids_at(plain[1])
    finally:
        found.close()


def test_calls_without_a_session_go_to_both(
    balancer: str, plain: tuple[Host, Host], tmp_path: Path, rows: np.ndarray
) -> None:
    found = Balancer(balancer, tmp_path, [host.address for host in plain])
    try:
        before = [steps_of(host) for host in plain]
        with cellar_client.Client(found.address) as client:
            for _ in range(30):
                client.predict(network.NAME, rows[:2])
        after = [steps_of(host) for host in plain]
        assert all(new > old for new, old in zip(after, before, strict=True))
        assert sum(after) - sum(before) == 60
    finally:
        found.close()


@needs_redis
def test_a_session_goes_on_elsewhere_when_its_server_is_killed(
    balancer: str, zoo: Path, tmp_path: Path, rows: np.ndarray
) -> None:
    redis = Redis(tmp_path)
    flags = ("--store", redis.url, "--durability", "step", "--lease-s", "1")
    hosts = Host(zoo, flags), Host(zoo, flags)
    with running(redis, *hosts):
        found = Balancer(balancer, tmp_path, [host.address for host in hosts])
        whole = undisturbed(hosts[0].address, network.NAME, rows)
        try:
            clients: dict[int, cellar_client.Client] = {}  # one that is led to each server
            for number in range(64):
                client = cellar_client.Client(found.address, affinity=f"caller-{number}", timeout=60)
                session = client.session(network.NAME)
                clients.setdefault(0 if session.id in ids_at(hosts[0]) else 1, client)
                if client not in clients.values():
                    client.close()
                if len(clients) == 2:
                    break
            victim, other = clients[0], clients[1]
            moved, stayed = victim.session(network.NAME, id="moved"), other.session(network.NAME, id="stayed")
            answers = {moved: [moved.step(row) for row in rows[:10]], stayed: [stayed.step(row) for row in rows[:10]]}
            assert "moved" in ids_at(hosts[0])
            assert "stayed" in ids_at(hosts[1])
            wire = other._wire
            hosts[0].kill()
            for row in rows[10:]:
                for session in (moved, stayed):
                    answers[session].append(session.step(row, timeout=60))
            for session, each in answers.items():
                np.testing.assert_array_equal(np.concatenate(each), whole, err_msg=session.id)
            assert {"moved", "stayed"} <= ids_at(hosts[1])
            assert other._wire is wire  # whose server lives noticed nothing
            for client in clients.values():
                client.close()
        finally:
            found.close()
