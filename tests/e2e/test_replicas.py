"""Two servers on one Redis: whatever happens to either of them, the outputs are those of an undisturbed run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cellar_client
import numpy as np
import pytest
from cellar_client.drivers import run

from benchmarks import network
from benchmarks.serving import ZOO
from tests.e2e.cluster import Host, Proxy, Redis, needs_redis, running, undisturbed

pytestmark = needs_redis
LEASE = ("--lease-s", "1")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replica-zoo")
    network.write_entry(folder)
    (folder / "describe").symlink_to(ZOO / "describe")
    return folder


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    made = Redis(tmp_path_factory.mktemp("redis"))
    yield made
    made.close()


@pytest.fixture(scope="module", params=["step", "interval"])
def pair(request: pytest.FixtureRequest, zoo: Path, redis: Redis) -> Iterator[tuple[Host, Host]]:
    flags = ("--store", redis.url, "--durability", request.param, *LEASE)
    a = Host(zoo, flags)
    b = Host(zoo, flags)
    with running(a, b):
        yield a, b


@pytest.fixture
def replicas(pair: tuple[Host, Host]) -> tuple[Host, Host]:
    for host in pair:
        if not host.is_running:
            host.start()
    return pair


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((160, network.WIDTH), np.float32)


@pytest.fixture(scope="module")
def whole(zoo: Path, rows: np.ndarray) -> bytes:
    with running(host := Host(zoo)):
        return undisturbed(host.address, network.NAME, rows).tobytes()


def both(replicas: tuple[Host, Host], **options: float) -> cellar_client.Client:
    return cellar_client.Client([host.address for host in replicas], timeout=30, **options)  # type: ignore[arg-type]


def test_a_session_goes_on_at_the_other_server_when_its_own_is_killed(
    replicas: tuple[Host, Host], rows: np.ndarray, whole: bytes
) -> None:
    a, b = replicas
    with both(replicas) as client, client.session(network.NAME) as session:
        answers = [np.asarray(session.step(row)) for row in rows[:60]]
        a.kill()
        answers += [np.asarray(session.step(row)) for row in rows[60:110]]
        a.start()
        b.kill()
        answers += [np.asarray(session.step(row)) for row in rows[110:]]
        assert np.concatenate(answers).tobytes() == whole
        b.start()
        assert session.position == len(rows)


def test_under_load_no_session_loses_or_repeats_a_step(
    replicas: tuple[Host, Host], rows: np.ndarray, whole: bytes
) -> None:
    """Eight sessions and a stream of sixteen; their server is killed in the middle."""
    a, _ = replicas
    with both(replicas) as client, client.stream(network.NAME, timeout=30) as stream:
        stream.open(16)
        outputs: dict[int, list[np.ndarray]] = {i: [] for i in range(8)}
        framed: list[np.ndarray] = []

        def step(i: int) -> None:
            with client.session(network.NAME) as session:
                outputs[i] += [np.asarray(session.step(row)) for row in rows]

        def frames() -> None:
            framed.extend(np.asarray(stream.step(np.repeat(row[None], 16, 0)).outputs) for row in rows)

        with ThreadPoolExecutor(9) as pool:
            running = [pool.submit(step, i) for i in outputs] + [pool.submit(frames)]
            time.sleep(0.1)
            a.kill()
            for each in running:
                each.result(60)
        assert {b"".join(piece.tobytes() for piece in pieces) for pieces in outputs.values()} == {whole}
        assert {np.stack(framed)[:, i].tobytes() for i in range(16)} == {whole}
        assert stream.positions.tolist() == [len(rows)] * 16


def test_a_server_paused_past_its_lease_neither_writes_nor_answers(
    replicas: tuple[Host, Host], rows: np.ndarray, whole: bytes
) -> None:
    a, b = replicas
    with both(replicas, keepalive_s=0.5) as client, client.session(network.NAME, id="paused", keep=True) as session:
        answers = [np.asarray(session.step(row)) for row in rows[:40]]
        pausing = threading.Thread(target=a.pause, args=(4.0,))
        pausing.start()
        answers += [np.asarray(session.step(row)) for row in rows[40:]]
        pausing.join()
        assert np.concatenate(answers).tobytes() == whole
        # what the paused server believes of the session is nothing to anybody: it asks the one that holds it
        with cellar_client.Client(a.address) as late, cellar_client.Client(b.address) as other:
            assert late.resume("paused").position == len(rows)
            assert other.resume("paused").position == len(rows)
            other.close_session("paused")
            with pytest.raises(cellar_client.SessionClosed):
                late.resume("paused")


def test_a_session_moves_to_whichever_server_is_asked(
    replicas: tuple[Host, Host], rows: np.ndarray, whole: bytes
) -> None:
    a, b = replicas
    with cellar_client.Client(a.address) as one, cellar_client.Client(b.address) as two:
        here = one.session(network.NAME, id="moving", keep=True)
        answers = []
        for at in range(0, 160, 20):
            answers += [np.asarray(here.step(row)) for row in rows[at : at + 20]]
            here = (two if here._client is one else one).resume("moving")
            assert here.position == at + 20
        assert np.concatenate(answers).tobytes() == whole
        moved = sum(client.model(network.NAME).counters["sessions_handed_over"] for client in (one, two))
        assert moved >= 8
        here.close()
        for client in (one, two):
            with pytest.raises(cellar_client.SessionClosed):
                client.resume("moving")


def test_ids_are_taken_on_all_servers_and_retried_verbs_change_nothing_twice(replicas: tuple[Host, Host]) -> None:
    a, b = replicas
    with cellar_client.Client(a.address) as one, cellar_client.Client(b.address) as two:
        session = one.session(network.NAME, id="taken", keep=True)
        session.step(np.ones((3, network.WIDTH), np.float32))
        with pytest.raises(cellar_client.SessionExists):
            two.session(network.NAME, id="taken")
        from cellar_proto.v1.sessions_pb2 import CloseSessionRequest, ForkSessionRequest, OpenSessionRequest

        fork = ForkSessionRequest(id="taken", new_id="forked", request_token=b"f" * 16)
        close = CloseSessionRequest(id="taken", request_token=b"c" * 16)
        opening = OpenSessionRequest(model=network.NAME, id="again", request_token=b"o" * 16)
        for client in (two, one, two):
            assert run(client._ask("sessions", "ForkSession", fork)).position == 3
            assert run(client._ask("sessions", "OpenSession", opening)).position == 0
        for client in (one, two, one):
            assert run(client._ask("sessions", "CloseSession", close)).position == 3
        for client in (one, two):
            with pytest.raises(cellar_client.SessionClosed):
                client.close_session("taken")
        two.close_session("forked")
        one.close_session("again")


def test_redis_is_restarted_and_paused(
    replicas: tuple[Host, Host], redis: Redis, rows: np.ndarray, whole: bytes
) -> None:
    with both(replicas) as client, client.session(network.NAME) as session:
        answers = [np.asarray(session.step(row)) for row in rows[:40]]
        redis.kill()
        starting = threading.Thread(target=lambda: (time.sleep(0.3), redis.start()))
        starting.start()
        answers += [np.asarray(session.step(row)) for row in rows[40:80]]
        starting.join()
        answers += [np.asarray(session.step(row)) for row in rows[80:100]]
        pausing = threading.Thread(target=redis.pause, args=(2.5,))
        pausing.start()
        answers += [np.asarray(session.step(row)) for row in rows[100:]]
        pausing.join()
        assert np.concatenate(answers).tobytes() == whole


def test_connections_cut_at_any_byte(replicas: tuple[Host, Host], rows: np.ndarray, whole: bytes) -> None:
    rng = np.random.default_rng(3)
    proxies = [Proxy(host.address) for host in replicas]
    with running(*proxies), cellar_client.Client([proxy.address for proxy in proxies], timeout=30) as client:
        with client.session(network.NAME) as session, client.stream(network.NAME, timeout=30) as stream:
            stream.open(4)
            answers, framed = [], []
            for i, row in enumerate(rows):
                if i % 8 == 3:
                    for proxy in proxies:
                        proxy.cut_after(int(rng.integers(0, 2500)))
                answers.append(np.asarray(session.step(row)))
                framed.append(np.asarray(stream.step(np.repeat(row[None], 4, 0)).outputs))
            for proxy in proxies:
                proxy.cut_after(-1)
        assert sum(proxy.cuts for proxy in proxies) >= 10
    assert np.concatenate(answers).tobytes() == whole
    assert {np.stack(framed)[:, i].tobytes() for i in range(4)} == {whole}


def test_a_generation_goes_on_at_the_other_server_with_the_same_tokens(replicas: tuple[Host, Host]) -> None:
    a, _ = replicas
    act = "inform(name='red door cafe';goodformeal='breakfast';area='cathedral hill';kidsallowed='no')"
    options = {"seed": 7, "temperature": 0.8, "max_steps": 40}
    with both(replicas) as client:
        expected = [token.id for token in client.generate("describe", act, **options)]
        for session_id in ("", "story"):
            if not a.is_running:
                a.start()
            client._links._at = 0
            generation = client.generate("describe", act, session_id=session_id, **options)
            held = [next(generation).id for _ in range(4)]
            a.kill()
            held += [token.id for token in generation]
            assert held == expected
            assert generation.finish
        assert client.resume("story").position == len(expected)
        client.close_session("story")


def test_a_stopped_server_gives_its_sessions_away_at_once(replicas: tuple[Host, Host], rows: np.ndarray) -> None:
    a, _ = replicas
    with both(replicas) as client, client.session(network.NAME, id="given", keep=True) as session:
        session.step(rows[:10])
        a.terminate()
        begun = time.monotonic()
        session.step(rows[10:20])
        assert session.position == 20
        assert time.monotonic() - begun < 10
        assert {each.id for each in client.sessions()} >= {"given"}
        client.close_session("given")
