"""Servers that are killed and started again: what was answered is there, and the clients come back by themselves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cellar_client
import numpy as np
import pytest

from benchmarks import network
from benchmarks.serving import ZOO
from tests.e2e.cluster import Host, undisturbed


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restart-zoo")
    network.write_entry(folder)
    return folder


@contextmanager
def host(zoo: Path, *extra: str) -> Iterator[Host]:
    made = Host(zoo, extra)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((120, network.WIDTH), np.float32)


def test_what_was_answered_under_step_survives_kill_9(zoo: Path, rows: np.ndarray, tmp_path: Path) -> None:
    with host(zoo, "--store", f"sqlite:///{tmp_path}/s.db", "--durability", "step") as server:
        whole = undisturbed(server.address, network.NAME, rows)
        with cellar_client.Client(server.address) as client:
            session = client.session(network.NAME, id="durable", keep=True)
            before = [np.asarray(session.step(row)) for row in rows[:50]]
            assert session.durable_position == session.info().durable_position == 50
        server.kill()
        server.start()
        with cellar_client.Client(server.address) as client:
            again = client.resume("durable")
            assert again.position == 50
            after = [np.asarray(again.step(row)) for row in rows[50:]]
            assert {each.id for each in client.sessions()} == {"durable"}
        assert np.concatenate([*before, *after]).tobytes() == whole.tobytes()


@pytest.mark.parametrize("store", ["step", "interval", "memory"])
def test_a_session_goes_on_through_kills_by_itself(zoo: Path, rows: np.ndarray, tmp_path: Path, store: str) -> None:
    flags = [] if store == "memory" else ["--store", f"sqlite:///{tmp_path}/s.db", "--durability", store]
    with host(zoo, *flags) as server:
        whole = undisturbed(server.address, network.NAME, rows)
        with cellar_client.Client(server.address, timeout=30) as client, client.session(network.NAME) as session:
            kills = iter([17, 40, 41, 90])
            at = next(kills)
            answers = []
            restarting = None
            for i, row in enumerate(rows):
                if i == at:
                    if restarting is not None:
                        restarting.join()
                    server.kill()
                    restarting = threading.Thread(target=lambda: (time.sleep(0.2), server.start()))
                    restarting.start()
                    at = next(kills, -1)
                answers.append(np.asarray(session.step(row)))
            assert session.position == len(rows)
        assert np.concatenate(answers).tobytes() == whole.tobytes()


async def test_the_asyncio_session_comes_back_too(zoo: Path, rows: np.ndarray) -> None:
    with host(zoo) as server:
        whole = await asyncio.to_thread(undisturbed, server.address, network.NAME, rows[:30])
        async with cellar_client.AsyncClient(server.address, timeout=30) as client:
            session = await client.session(network.NAME, max_idle_s=123)
            answers = [np.asarray(await session.step(rows[:15]))]
            await asyncio.to_thread(server.kill)
            starting = asyncio.create_task(asyncio.to_thread(server.start))
            answers.append(np.asarray(await session.step(rows[15:30])))
            await starting
            assert (await session.info()).max_idle_s == 123
            await session.close()
    assert np.concatenate(answers).tobytes() == whole.tobytes()


def test_what_is_lost_and_not_held_is_said_to_be_lost(zoo: Path, rows: np.ndarray) -> None:
    with host(zoo) as server, cellar_client.Client(server.address, timeout=30) as client:
        client.session(network.NAME, id="mine", keep=True).step(rows[:5])
        with cellar_client.Client(server.address, timeout=30) as other:
            # who takes a session up later never held what came before
            late = other.resume("mine")
            late.step(rows[5])
            server.kill()
            server.start()
            with pytest.raises(cellar_client.errors.SessionLost, match="only what came from 5 on") as caught:
                late.step(rows[6])
            assert caught.value.expected_position == 0


def test_a_server_that_stays_away_is_an_error_within_the_call_s_time(zoo: Path, rows: np.ndarray) -> None:
    with host(zoo) as server, cellar_client.Client(server.address) as client:
        session = client.session(network.NAME, keep=True)
        session.step(rows[0])
        server.kill()
        begun = time.monotonic()
        with pytest.raises(cellar_client.errors.ServiceError):
            session.step(rows[1], timeout=1.0)
        assert time.monotonic() - begun < 5


def test_a_store_that_cannot_be_opened_ends_the_start(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="neither `memory`, sqlite"):
        Host(zoo, ["--store", "floppy:a"])
    (tmp_path / "no.db").write_text("no database " * 200)
    with pytest.raises(Exception, match="not a database"):
        Host(zoo, ["--store", f"sqlite:///{tmp_path}/no.db"])


@pytest.mark.parametrize("store", ["step", "interval", "memory"])
def test_a_frame_stream_goes_on_through_kills_by_itself(
    zoo: Path, rows: np.ndarray, tmp_path: Path, store: str
) -> None:
    """Three frames in flight, rows of unequal lengths, a kill in the middle of them."""
    flags = [] if store == "memory" else ["--store", f"sqlite:///{tmp_path}/s.db", "--durability", store]
    lengths = [1, 3, 2, 1]
    with host(zoo, *flags) as server:
        whole = undisturbed(server.address, network.NAME, rows)
        with cellar_client.Client(server.address, timeout=30) as client, client.stream(network.NAME) as stream:
            stream.open(4)
            found: list[list[np.ndarray]] = [[], [], [], []]
            sent = received = 0
            while received < 40:
                while sent < min(received + 3, 40):
                    at = stream.positions.tolist()
                    chunks = [rows[at[i] : at[i] + n] for i, n in enumerate(lengths)]
                    stream.send(np.concatenate(chunks), lengths)
                    sent += 1
                if received in (7, 8, 25):
                    server.kill()
                    server.start()
                answer = stream.receive().check()
                for i, piece in enumerate(answer.rows()):
                    found[i].append(np.asarray(piece))
                received += 1
            assert stream.positions.tolist() == [40 * n for n in lengths]
        for i, n in enumerate(lengths):
            assert np.concatenate(found[i]).tobytes() == whole[: 40 * n].tobytes()


async def test_the_asyncio_frame_stream_comes_back_too(zoo: Path, rows: np.ndarray) -> None:
    with host(zoo) as server:
        whole = await asyncio.to_thread(undisturbed, server.address, network.NAME, rows[:20])
        async with cellar_client.AsyncClient(server.address, timeout=30) as client:
            stream = await client.stream(network.NAME)
            await stream.open(3)
            found = []
            for t, row in enumerate(rows[:20]):
                if t == 9:
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
                found.append(np.asarray((await stream.step(np.repeat(row[None], 3, 0))).outputs))
            await stream.close()
    assert {np.stack(found)[:, i].tobytes() for i in range(3)} == {whole.tobytes()}


def test_a_generation_goes_on_through_a_kill_with_the_same_tokens(tmp_path: Path) -> None:
    act = "inform(name='red door cafe';goodformeal='breakfast';area='cathedral hill';kidsallowed='no')"
    options = {"temperature": 0.8, "max_steps": 40, "seed": 11}
    with host(ZOO) as server, cellar_client.Client(server.address, timeout=30) as client:
        expected = [token.id for token in client.generate("describe", act, **options)]
        for session_id in ("", "story"):
            generation = client.generate("describe", act, session_id=session_id, **options)
            held = [next(generation).id for _ in range(3)]
            server.kill()
            server.start()
            assert held + [token.id for token in generation] == expected
            assert generation.finish == "end"


def test_what_went_wrong_is_seen_soon_where_the_server_is_gone(zoo: Path, rows: np.ndarray) -> None:
    with host(zoo) as server, cellar_client.Client(server.address) as client:
        begun = time.monotonic()

        def fail() -> None:
            with client.session(network.NAME) as session:
                session.step(rows[0])
                server.kill()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert time.monotonic() - begun < 20


def test_closing_waits_for_a_server_that_comes_back(zoo: Path, rows: np.ndarray, tmp_path: Path) -> None:
    with (
        host(zoo, "--store", f"sqlite:///{tmp_path}/s.db", "--durability", "step") as server,
        cellar_client.Client(server.address) as client,
        client.stream(network.NAME) as stream,
    ):
        session = client.session(network.NAME, keep=True)
        session.step(rows[:3])
        stream.open(2)
        stream.step(rows[:2])
        assert len(client.sessions()) == 3
        server.kill()
        starting = threading.Thread(target=lambda: (time.sleep(0.3), server.start()))
        starting.start()
        stream.close_sessions()
        session.close()
        starting.join()
        assert client.sessions() == []
        with pytest.raises(cellar_client.SessionClosed):
            client.resume(session.id)
