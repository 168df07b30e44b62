"""Both clients against a real server of running sums."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cellar_client
import grpc
import numpy as np
import pytest
from cellar_client import AsyncClient, CellarError, Client, Emissions
from cellar_client.cli import main
from cellar_client.codec import Codec
from cellar_client.drivers import run
from cellar_client.errors import CLASSES, from_error
from cellar_client.frames import FrameBook
from cellar_client.replay import Chunk, Replay
from cellar_proto.v1.inference_pb2 import Answer, FrameError, OpenedSessions
from cellar_proto.v1.reason_pb2 import Error, Reason


@pytest.fixture
def client(running: object):  # type: ignore[no-untyped-def]
    with Client(running.address, timeout=10) as client:  # type: ignore[attr-defined]
        yield client


def test_every_reason_has_an_exception_and_back() -> None:
    assert set(CLASSES) == {number for number in Reason.values() if number}
    for number, kind in CLASSES.items():
        error = from_error(Error(reason=number, message="m", expected_position=3, retry_after_ms=250, error_id="x"))
        assert type(error) is kind
        assert (error.reason, error.message, error.expected_position, error.retry_after_s) == (number, "m", 3, 0.25)
        assert kind.__name__.lower() == Reason.Name(number).lower().replace("_", "")
    assert all(hasattr(cellar_client, name) for name in cellar_client.__all__)


def test_predictions(client: Client) -> None:
    assert client.predict("counter", [1, 2]).tolist() == [[1, 2]]
    assert client.predict("counter", np.ones((3, 2))).tolist() == [[1, 1], [2, 2], [3, 3]]
    answers = client.predict_many("counter", [np.ones((n, 2)) for n in (2, 1, 4)] + [np.zeros((0, 2))])
    assert [len(answer) for answer in answers[:3]] == [2, 1, 4]
    assert isinstance(answers[3], cellar_client.errors.EmptyInput)


def test_many_sequences_are_split_below_the_servers_limits(client: Client) -> None:
    xs = [np.full((3000, 2), i) for i in range(100)]  # 24 kB each, 1 MiB a message
    answers = client.predict_many("counter", xs)
    assert [answer[-1, 0] for answer in answers] == [3000 * i for i in range(100)]


@pytest.mark.parametrize(
    ("x", "kind"),
    [
        (np.zeros((2, 3)), "ShapeMismatch"),
        ("text", "DtypeMismatch"),
        ([["a", "b"]], "DtypeMismatch"),
        ([[np.nan, 1]], "NonFiniteInput"),
        (np.zeros((200_000, 2)), "TooLarge"),
    ],
)
def test_bad_input_is_a_typed_error(client: Client, x: object, kind: str) -> None:
    with pytest.raises(CellarError) as caught:
        client.predict("counter", x)
    assert type(caught.value).__name__ == kind


def test_a_session_remembers(client: Client) -> None:
    with client.session("counter") as s:
        assert s.step([1, 1]).tolist() == [[1, 1]]
        assert s.step(np.ones((2, 2)))[-1].tolist() == [3, 3]
        assert s.position == 3
        fork = s.fork()
        assert fork.step([1, 0])[0].tolist() == [4, 3]
        fork.close()
        with pytest.raises(cellar_client.NonFiniteInput):
            s.step([np.inf, 0])
        assert s.step([0, 1])[0].tolist() == [3, 4]
        assert s.id in {info.id for info in client.sessions("counter")}
    with pytest.raises(cellar_client.SessionClosed):
        s.step([1, 1])
    with pytest.raises(cellar_client.SessionClosed):
        client.resume(s.id)


def test_a_long_chunk_is_split(client: Client) -> None:
    with client.session("counter") as s:
        y = s.step(np.ones((150_000, 2)))
        assert y.shape == (150_000, 2)
        assert y[-1].tolist() == [150_000] * 2
        assert s.position == 150_000


def test_a_session_outlives_its_stream_and_its_client(client: Client, running: object) -> None:
    session = client.session("counter", keep=True)
    session.step([1, 1])
    client._wire._call.cancel()
    client._wire._reader.join(5)
    assert session.step([1, 1])[0].tolist() == [2, 2]
    with Client(running.address) as other:  # type: ignore[attr-defined]
        again = other.resume(session.id)
        assert again.position == 2
        assert again.step([1, 1])[0].tolist() == [3, 3]
        again.close()


def test_a_session_is_exported_and_goes_on_elsewhere(client: Client) -> None:
    with client.session("counter", max_idle_s=77) as session:
        session.step([[1, 2], [3, 4]])
        answer = session.step([1, 0])
        assert {name: part.tolist() for name, part in session.state().items()} == {"sums": [5, 6]}
        blob = session.export()
        session.step([100, 100])
        twin = client.import_session(blob, id="the-twin")
        assert (twin.id, twin.position, twin.info().max_idle_s) == ("the-twin", 3, 77)
        with pytest.raises(cellar_client.errors.SessionExists):
            client.import_session(blob, id="the-twin")
        # a chunk that the original took in is answered by its copy too, and not run again
        twin.position = 2
        assert np.array_equal(twin.step([1, 0]), answer)
        assert twin.step([1, 1]).tolist() == [[6, 7]]
        twin.close()
    with pytest.raises(cellar_client.errors.StateIncompatible, match="no exported session"):
        client.import_session(b"\xff\xff")


def test_a_session_is_forked_by_its_id(client: Client) -> None:
    with client.session("counter", id="origin") as session:
        session.step([1, 2])
        forked = client.fork_session("origin", id="copy")
        assert (forked.id, forked.model, forked.position) == ("copy", "counter", 1)
        with client.resume("copy", keep=False) as copy:
            assert copy.step([1, 1]).tolist() == [[2, 3]]
        with client.resume(client.fork_session("origin").id, keep=False) as minted:
            assert minted.step([0, 1]).tolist() == [[1, 3]]
        assert repr(session) == "Session('origin' of counter, position 1)"
    with pytest.raises(cellar_client.SessionClosed):
        client.fork_session("origin")
    with pytest.raises(cellar_client.SessionNotFound):
        client.fork_session("never was")


def test_a_session_may_end_with_its_connection(client: Client, address: str) -> None:
    with Client(address) as other:
        brief = other.session("counter", grace_s=0, keep=True)
        lasting = other.session("counter", keep=True)
        for session in (brief, lasting):
            session.step([1, 1])
    deadline = time.monotonic() + 10
    while brief.id in {each.id for each in client.sessions()}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(cellar_client.SessionExpired, match="nobody took it up"):
        client.resume(brief.id)
    client.resume(lasting.id, keep=False).close()


def test_a_refused_frame_sets_positions_back(client: Client) -> None:
    book = FrameBook(run(client._codec("counter")))
    book._take_opened(OpenedSessions(ids=["a", "b"], handles=[1, 2], positions=[5, 7]))
    book._frame_request(1, np.ones((3, 2)), [1, 2], None, 0, False, False)
    assert book.positions.tolist() == [6, 9]
    passing = FrameError(frame_id=1, error=Error(reason=Reason.SHUTTING_DOWN, message="m"))
    with pytest.raises(cellar_client.errors.ShuttingDown):
        book._take("frame_error", 1, passing)
    assert book.positions.tolist() == [6, 9]  # it is sent again
    refused = FrameError(frame_id=1, error=Error(reason=Reason.INVALID_REQUEST, message="m"))
    with pytest.raises(cellar_client.errors.InvalidRequest):
        book._take("frame_error", 1, refused)
    assert book.positions.tolist() == [5, 7]


def test_a_frame_stream(client: Client) -> None:
    with client.stream("counter") as stream:
        stream.open(50)
        x = np.arange(100).reshape(50, 2)
        for t in range(1, 4):
            answer = stream.step(x)
            assert np.array_equal(answer.outputs, x * t)
        stream.send(np.ones((6, 2)), [1, 2, 3], rows=[4, 5, 6])
        ragged = stream.receive().check()
        assert ragged.lengths.tolist() == [1, 2, 3]
        assert [row[-1, 0] for row in ragged.rows()] == [25, 32, 39]
        bad = np.ones((50, 2))
        bad[7] = np.nan
        stream.send(bad)
        failed = stream.receive()
        assert list(failed.errors) == [7]
        assert failed.lengths.tolist() == [1] * 7 + [0] + [1] * 42
        assert stream.step(np.zeros((50, 2))).outputs[7].tolist() == [42, 45]
        stream.close_sessions()


def test_a_server_that_is_not_there() -> None:
    with Client("127.0.0.1:1", timeout=2) as client, pytest.raises(CellarError) as caught:
        client.models()
    assert type(caught.value).__name__ in ("Unavailable", "DeadlineExceeded")
    assert caught.value.retry_after_s is None


async def test_the_async_client_has_the_same_verbs(running: object) -> None:
    async with AsyncClient(running.address, timeout=10) as client:  # type: ignore[attr-defined]
        assert {model.name for model in await client.models()} == {"broken", "counter", "other"}
        assert (await client.predict("counter", [1, 2])).tolist() == [[1, 2]]
        async with await client.session("counter") as s:
            await s.step([1, 1])
            fork = await s.fork()
            assert (await fork.step([1, 1]))[0].tolist() == [2, 2]
            assert s.id in {info.id for info in await client.sessions()}
            again = await client.resume(fork.id)
            assert again.position == 2
            await again.close()
        with pytest.raises(cellar_client.ModelNotFound):
            await client.predict("nothing", [1, 2])
        with pytest.raises(CellarError):
            async for _ in client.generate("counter", "x"):
                pass
        async with await client.session("counter") as session:
            await session.step([1, 2])
            twin = await client.import_session(await session.export())
            assert (await twin.state())["sums"].tolist() == [1, 2]
            assert (await twin.step([1, 1])).tolist() == [[2, 3]]
            forked = await client.fork_session(twin.id)
            assert (forked.id != twin.id, forked.position) == (True, twin.position)
            await client.close_session(forked.id)
            await twin.close()
        async with await client.stream("counter") as stream:
            await stream.open(3)
            assert (await stream.step(np.ones((3, 2)))).outputs.tolist() == [[1, 1]] * 3
            await stream.close_sessions()


def test_emissions_know_their_classes() -> None:
    y = Emissions([[0.2, 0.8], [0.9, 0.1]], ("no", "yes"))
    assert y.labels == ["yes", "no"]
    assert (y.label, y[0].label) == ("no", "yes")
    assert (y * 2).sum() == pytest.approx(4)
    assert repr(y[0]).endswith("dtype=float32, label='yes')")
    assert repr(y).endswith("label='no')")
    with pytest.raises(AttributeError):
        _ = Emissions([1.0]).labels
    assert repr(Emissions([1.0])) == "Emissions([1.], dtype=float32)"
    assert repr(Emissions([], ("no", "yes"))) == "Emissions([], dtype=float32)"


# -- scoring and the command line -----------------------------------------------------------------------------------


def test_the_command_line(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--server", address, "--json"]) == 0
    assert {model["name"] for model in json.loads(capsys.readouterr().out)} == {"broken", "counter", "other"}
    assert main(["models", "--server", address]) == 0
    assert "counter" in capsys.readouterr().out
    assert main(["predict", "--server", address, "counter", "1,2"]) == 0
    assert capsys.readouterr().out == "1,2\n"
    assert main(["predict", "--server", address, "nothing", "1"]) == 1
    assert capsys.readouterr().err.startswith("cellar: MODEL_NOT_FOUND")
    assert main(["sessions", "--server", address]) == 0
    assert main(["generate", "--server", address, "counter"]) == 1
    capsys.readouterr()
    assert main(["predict", "--server", address, "counter", "one,2"]) == 1
    assert capsys.readouterr().err == "cellar: 'one,2' is not one step's numbers by commas\n"
    assert main(["predict", "--server", address, "counter", "1,2,3"]) == 1
    assert "takes a step [2] or steps [time, 2]; the input is [3]" in capsys.readouterr().err
    assert main(["models", "--server", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("cellar: UNAVAILABLE: no answer from the server")
    missing = [
        "score",
        "--server",
        address,
        "--model",
        "counter",
        "--input",
        str(tmp_path / "no.csv"),
        "--output",
        "x.csv",
    ]
    assert main(missing) == 1
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2


def test_an_abandoned_generation_is_cancelled(client: Client) -> None:
    generation = client.generate("counter", "x")
    call = generation._call
    del generation
    gc.collect()
    assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.FAILED_PRECONDITION)


def test_sessions_of_many_threads_share_a_stream_and_its_answers(client: Client) -> None:
    """What one run finishes for a stream is one answer: each session takes its own row."""

    def sums(k: int) -> list[float]:
        with client.session("counter") as session:
            return [float(session.step([k, 1])[0, 0]) for _ in range(60)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(sums, range(1, 9)))
    assert found == [[k * (t + 1.0) for t in range(60)] for k in range(1, 9)]


async def test_sessions_of_many_tasks_share_a_stream_and_its_answers(address: str) -> None:
    async with AsyncClient(address) as client:

        async def sums(k: int) -> list[float]:
            async with await client.session("counter") as session:
                return [float((await session.step([k, 1]))[0, 0]) for _ in range(40)]

        found = await asyncio.gather(*(sums(k) for k in range(1, 9)))
    assert list(found) == [[k * (t + 1.0) for t in range(40)] for k in range(1, 9)]


async def test_who_waits_on_a_stream_that_is_left_learns_of_it(address: str) -> None:
    async with AsyncClient(address, timeout=60) as client, await client.session("counter") as session:
        await session.step([1, 1])
        wire = client._shared_wire()
        inbox = wire.inbox()
        wire._expect(1_000, inbox)  # an answer that will not come
        waiting = asyncio.ensure_future(wire.take(inbox, 60))
        await asyncio.sleep(0)
        wire.cancel()
        with pytest.raises(cellar_client.Unavailable):
            await waiting
        assert (await session.step([1, 1])).tolist() == [[2, 2]]


def test_another_server_is_asked_where_the_first_does_not_answer(address: str) -> None:
    with Client(["127.0.0.1:1", address], timeout=10) as client:
        assert client.predict("counter", [1, 2]).tolist() == [[1, 2]]
        with client.session("counter") as session:
            assert session.step([1, 2]).tolist() == [[1, 2]]
    with Client(["127.0.0.1:1", "127.0.0.1:2"], timeout=10) as client, pytest.raises(cellar_client.Unavailable):
        client.models()
    with pytest.raises(ValueError, match="address"):
        Client([])
    with pytest.raises(ValueError, match="HOST:PORT, not 'http://localhost:1'"):
        Client("http://localhost:1")


def test_what_is_kept_to_be_sent_again_is_bounded() -> None:
    def chunks(replay: Replay) -> None:
        for start in range(0, 50, 10):
            replay.add(Chunk(start, bytes(40), 10, False))

    # nothing is stored: the oldest go, and the way back to before them
    replay = Replay(0, drops=True, max_bytes=100 + 2 * 256)
    chunks(replay)
    assert (replay.first, replay.is_full) == (30, False)
    with pytest.raises(cellar_client.errors.SessionLost):
        replay.since(20, 50)
    assert [chunk.start for chunk in replay.since(40, 50)] == [40]
    # something is: nothing goes before it is durable, and the sender waits
    replay = Replay(0, drops=False, max_bytes=100 + 2 * 256)
    chunks(replay)
    assert (replay.first, replay.is_full) == (0, True)
    replay.settle(30)
    assert (replay.first, replay.is_full) == (30, False)


def test_a_frame_stream_waits_where_what_it_sent_is_not_durable(client: Client) -> None:
    book = FrameBook(Codec(replace(run(client._codec("counter")).info, durability="interval")), max_bytes=60 + 4 * 1024)
    book._take_opened(OpenedSessions(ids=["a", "b"], handles=[1, 2], positions=[0, 0]))
    for number in range(1, 6):
        book._frame_request(number, np.ones((2, 2)), None, None, 0, False, False)
        answer = Answer(
            frame_ids=[number], handles=[1, 2], starts=[number - 1] * 2, positions=[number] * 2, lengths=[1]
        )
        answer.outputs.shape.extend([2, 2])
        answer.outputs.data = bytes(16)
        answer.durable_positions.extend([2 if number == 5 else 0] * 2)
        taken = book._take("answer", number, answer)
        assert taken is not None
        assert book._is_full == (number == 4)
    assert book._num_bytes == 3 * (16 + 1024)
    assert book._first.tolist() == [2, 2]
