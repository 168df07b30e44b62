"""What callers may do, and what becomes of their streams when that changes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cellar_client
import grpc
import numpy as np
import pytest
import tritonclient.grpc as tritonclient
from cellar_client.cli import main
from cellar_client.drivers import run
from cellar_client.errors import CellarError, NotAllowed, Unauthenticated, typed
from cellar_proto.v1.inference_pb2 import StepRequest, StreamRequest
from cellar_proto.v1.inference_pb2_grpc import InferenceStub
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server.config import Settings, read
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from tritonclient.utils import InferenceServerException

from tests.contract.conftest import Running
from tests.fakes.issuer import AUDIENCE, ISSUER, Key, write_jwks
from tests.fakes.zoo import write_counter
from tests.oip.asking import ask, refusal, stream, tensor

ONE = np.ones(2, np.float32)
NAMES = ("alice", "bob", "ops", "nobody")
RIGHTS = """
[rights."alice"]
call = ["counter", "shared-*"]
[rights."bob"]
call = ["*"]
[rights."ops"]
call = []
administer = ["counter"]
see_all = true
[rights."jo*"]
call = ["other"]
"""


class Place:
    """The files of a server."""

    def __init__(self, folder: Path, transport: str) -> None:
        self.folder = folder
        self._transport = transport
        self.key = Key()
        write_counter(folder / "zoo")
        write_counter(folder / "zoo", "other")
        self.write_tokens(*NAMES)
        self.write_rights(RIGHTS)
        write_jwks(folder / "jwks.json", self.key.jwk())

    def write_tokens(self, *names: str) -> None:
        lines = [f"{hashlib.sha256(name.encode()).hexdigest()} {name}\n" for name in names]
        self._write("tokens", "".join(lines))

    def write_rights(self, text: str) -> None:
        options = {
            "listen": "127.0.0.1:0",
            "transport": self._transport,
            "models": self.folder / "zoo",
            "tokens": self.folder / "tokens",
            "jwks": self.folder / "jwks.json",
            "jwt_issuer": ISSUER,
            "jwt_audience": AUDIENCE,
        }
        lines = [f'{name} = "{value}"\n' for name, value in options.items()]
        self._write("cellar.toml", "".join(lines) + text)

    def _write(self, name: str, text: str) -> None:
        (self.folder / "partial").write_text(text)
        (self.folder / "partial").replace(self.folder / name)

    @property
    def settings(self) -> Settings:
        return read(["--config", str(self.folder / "cellar.toml")], {})


@pytest.fixture
def place(transport: str, tmp_path: Path) -> Place:
    return Place(tmp_path, transport)


@pytest.fixture
def server(place: Place) -> Iterator[Running]:
    running = Running(place.settings.config, place.settings)
    yield running
    running.stop()


def client(server: Running, token: Any, timeout: float = 10) -> cellar_client.Client:
    return cellar_client.Client(server.address, token=token, timeout=timeout)


def not_allowed(*verbs: Callable[[], Any]) -> None:
    for verb in verbs:
        with pytest.raises(NotAllowed):
            verb()


def test_callers_call_the_models_that_they_may(server: Running) -> None:
    with client(server, "alice") as alice, client(server, "bob") as bob, client(server, "nobody") as nobody:
        assert bob.predict("other", ONE).tolist() == [[1, 1]]
        exported = bob.session("other", keep=True).export()
        for who in (alice, nobody):
            not_allowed(
                lambda who=who: who.predict("other", ONE),
                lambda who=who: who.model("other"),
                lambda who=who: who.session("other"),
                lambda who=who: who.import_session(exported),
                lambda who=who: next(who.generate("other", "x")),
                # whether there is such a model, it does not learn
                lambda who=who: who.model("missing"),
                lambda who=who: who.load("missing"),
                lambda who=who: who.load("counter"),
                lambda who=who: who.unload("counter"),
                lambda who=who: who.sessions(all_callers=True),
            )
            with cellar_client.Client(server.address, token="bob") as other:
                codec = run(other._codec("other"))
            frames = cellar_client.FrameStream(who, codec, 5.0)
            with frames, pytest.raises(NotAllowed):
                frames.open(1)
        assert alice.predict("counter", ONE).tolist() == [[1, 1]]
        with alice.session("counter") as session, alice.stream("counter") as frames:
            session.step(ONE)
            with session.fork() as fork:
                assert fork.step(ONE).tolist() == [[2, 2]]
            frames.open(2)
            assert frames.step(np.ones((2, 2), np.float32)).outputs.tolist() == [[1, 1]] * 2
        assert [[m.name for m in who.models()] for who in (alice, bob, nobody)] == [
            ["counter"],
            ["counter", "other"],
            [],
        ]


def test_steps_in_calls_of_their_own_have_the_same_rights(server: Running, place: Place) -> None:
    def step(token: str, id: str) -> int:
        given = StepRequest(session_id=id, inputs=Tensor(data=ONE.tobytes()))
        metadata = [("authorization", f"Bearer {token}")]
        with typed():
            return InferenceStub(channel).Step(given, timeout=5, metadata=metadata).position

    with (
        grpc.insecure_channel(server.address) as channel,
        client(server, "alice") as alice,
        client(server, "bob") as bob,
    ):
        alice.session("counter", id="hers", keep=True)
        bob.session("other", id="his", keep=True)
        assert [step("alice", "hers"), step("bob", "his"), step(place.key.token("alice"), "hers")] == [1, 1, 2]
        for token, id in (("alice", "his"), ("bob", "hers"), ("ops", "hers")):
            with pytest.raises(cellar_client.SessionNotFound):
                step(token, id)
        for token in ("", "mallory", Key().token("alice")):
            with pytest.raises(Unauthenticated):
                step(token, "hers")
        place.write_rights(RIGHTS.replace('call = ["*"]', 'call = ["counter"]'))
        server.run(server.server.access.reload())
        not_allowed(lambda: step("bob", "his"))
        assert step("alice", "hers") == 3


def test_subjects_of_an_issuer_are_callers_like_others(server: Running, place: Place) -> None:
    given: list[str] = []

    def token() -> str:
        given.append(place.key.token("john"))
        return given[-1]

    with (
        client(server, token) as john,
        client(server, place.key.token("alice")) as alice,
        client(server, "alice") as her,
    ):
        assert john.predict("other", ONE).tolist() == [[1, 1]]
        not_allowed(lambda: john.predict("counter", ONE))
        assert len(given) > 2  # asked for each call
        # the same name by a token of the file and by a JWT is the same caller
        her.session("counter", id="mine", keep=True).step(ONE)
        assert alice.resume("mine").position == 1
    for bad in (Key().token("bob"), place.key.token("bob", exp=time.time() - 60), place.key.token("two words")):
        with client(server, bad) as stranger, pytest.raises(Unauthenticated):
            stranger.models()


def test_who_administers_loads_and_sees_and_need_not_call(
    server: Running, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with client(server, "ops") as ops, client(server, "alice") as alice, client(server, "bob") as bob:
        hers, his = alice.session("counter", id="s", keep=True), bob.session("counter", id="s", keep=True)
        for session in (hers, his):
            session.step(ONE)
        found = {(each.caller, each.id, each.position) for each in ops.sessions(all_callers=True)}
        assert found == {("alice", "s", 1), ("bob", "s", 1)}
        assert ops.sessions() == []
        assert [each.caller for each in alice.sessions()] == [""]
        monkeypatch.setenv("CELLAR_TOKEN", "ops")
        assert main(["sessions", "--all", "--server", server.address]) == 0
        assert "alice" in capsys.readouterr().out
        not_allowed(lambda: ops.predict("counter", ONE), lambda: ops.session("counter"), lambda: ops.unload("other"))
        write_counter(place.folder / "zoo", version=2)
        assert ops.load("counter") == [1, 2]
        assert ops.unload("counter", 1, force_reason="over") == 2
        for session in (hers, his):
            with pytest.raises(cellar_client.SessionClosed, match="over"):
                session.step(ONE)


def test_pages_of_all_callers_miss_nobody(server: Running) -> None:
    with client(server, "ops") as ops, client(server, "alice") as alice, client(server, "bob") as bob:
        for who in (alice, bob):
            with who.stream("counter") as frames:
                frames.open([f"{i:04}" for i in range(1200)])
        found = ops.sessions(all_callers=True)
        assert [(each.caller, each.id) for each in found] == [
            (n, f"{i:04}") for n in ("alice", "bob") for i in range(1200)
        ]
        assert len(alice.sessions()) == 1200


def test_the_open_inference_protocol_has_the_same_rights(server: Running) -> None:
    def made(name: str) -> tuple[Any, dict[str, str]]:
        return tritonclient.InferenceServerClient(server.address), {"authorization": f"Bearer {name}"}

    triton, alice = made("alice")
    ops = {"authorization": "Bearer ops"}
    with triton:
        given = tensor(np.ones((1, 1, 2)))
        assert ask(triton, "counter", given, headers=alice).tolist() == [[[1, 1]]]
        for model in ("other", "missing"):
            assert "PERMISSION_DENIED" in refusal(triton, model, given, headers=alice)
        for verb in (
            lambda: triton.get_model_metadata("other", headers=alice),
            lambda: triton.get_model_config("other", headers=alice),
            lambda: triton.is_model_ready("other", headers=alice),
            lambda: triton.get_inference_statistics("other", headers=alice),
            lambda: triton.load_model("counter", headers=alice),
            lambda: triton.unload_model("counter", headers=alice),
            lambda: triton.infer("counter", [given], headers=ops),
        ):
            with pytest.raises(InferenceServerException, match="NOT_ALLOWED"):
                verb()
        for verb in (triton.is_server_live, triton.get_model_repository_index, triton.get_inference_statistics):
            with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                verb()
        assert [each.name for each in triton.get_model_repository_index(headers=alice).models] == ["counter"]
        assert [each.name for each in triton.get_inference_statistics(headers=alice).model_stats] == ["counter"]
        with stream(triton, headers=alice) as replies:
            triton.async_stream_infer("other", [given], request_id="1")
            assert "NOT_ALLOWED" in str(replies.take()[1])
            triton.async_stream_infer("counter", [given], request_id="2")
            assert replies.take()[0].as_numpy("y").tolist() == [[[1, 1]]]
        triton.unload_model("counter", headers=ops)
        assert not triton.is_model_ready("counter", headers=alice)
        triton.load_model("counter", headers=ops)


def test_reflection_is_for_callers(server: Running) -> None:
    request = ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(server.address) as channel:
        stub = ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.ServerReflectionInfo(iter([request]), timeout=5))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        found = next(stub.ServerReflectionInfo(iter([request]), timeout=5, metadata=[("authorization", "Bearer bob")]))
        assert len(found.list_services_response.service) >= 5


def test_new_tokens_and_rights_hold_at_once_and_live_streams_go_on_or_end(server: Running, place: Place) -> None:
    reload = server.server.access.reload
    row = np.ones((1, 2), np.float32)
    johns = place.key.token("john", exp=time.time() + 1)
    with (
        client(server, "alice", 3) as alice,
        client(server, "bob", 3) as bob,
        client(server, johns, 3) as john,
        alice.stream("counter") as hers,
        bob.stream("counter") as his,
        john.stream("other") as theirs,
    ):
        for frames in (hers, his, theirs):
            frames.open(1)
            frames.step(row)
        with client(server, "carol") as carol, pytest.raises(Unauthenticated):
            carol.models()
        # bob's token is taken away, carol's is new
        place.write_tokens("alice", "carol", "ops", "nobody")
        server.run(reload())
        with client(server, "carol") as carol:
            assert carol.models() == []
        with pytest.raises(Unauthenticated):
            bob.models()
        with pytest.raises(Unauthenticated):
            his.step(row)
        assert hers.step(row).outputs.tolist() == [[2, 2]]
        # a right is taken away: what alice may call
        place.write_rights(RIGHTS.replace('"counter", "shared-*"', '"shared-*"'))
        server.run(reload())
        not_allowed(lambda: hers.step(row), lambda: alice.predict("counter", ONE))
        # a stream outlives the time of its JWT, also where files are read again
        time.sleep(1.1)
        assert theirs.step(row).outputs.tolist() == [[2, 2]]
        # but not its key
        write_jwks(place.folder / "jwks.json", Key().jwk())
        server.run(reload())
        with pytest.raises(Unauthenticated):
            theirs.step(row)


async def test_who_has_a_new_token_goes_on_when_the_issuer_changes_its_key(server: Running, place: Place) -> None:
    keys = [place.key]
    row = np.ones((1, 2), np.float32)

    def token() -> str:
        return keys[-1].token("john")

    async with cellar_client.AsyncClient(server.address, token=token, timeout=5) as client:
        with cellar_client.Client(server.address, token=token, timeout=5) as other, other.stream("other") as frames:
            session, plain = await client.session("other"), other.session("other")
            frames.open(1)
            for number in (1, 2, 3):
                assert (await session.step(ONE)).tolist() == [[number, number]]
                assert (await asyncio.to_thread(plain.step, ONE)).tolist() == [[number, number]]
                assert (await asyncio.to_thread(frames.step, row)).outputs.tolist() == [[number, number]]
                keys.append(Key("EC", str(number + 1)))
                write_jwks(place.folder / "jwks.json", keys[-1].jwk())
                await asyncio.to_thread(server.run, server.server.access.reload())


def test_streams_of_the_open_inference_protocol_end_too(server: Running, place: Place) -> None:
    with tritonclient.InferenceServerClient(server.address) as triton:
        given = tensor(np.ones((1, 1, 2)))
        with stream(triton, headers={"authorization": "Bearer alice"}) as replies:
            triton.async_stream_infer("counter", [given])
            assert replies.take()[1] is None
            place.write_rights(RIGHTS.replace('"counter", "shared-*"', '"other"'))
            server.run(server.server.access.reload())
            triton.async_stream_infer("counter", [given])
            assert "NOT_ALLOWED" in str(replies.take()[1])
            triton.async_stream_infer("other", [given])
            assert replies.take()[1] is None
            place.write_tokens("bob")
            server.run(server.server.access.reload())
            assert "UNAUTHENTICATED" in str(replies.take()[1])


@pytest.mark.parametrize("broken", ["tokens", "rights", "jwks"])
def test_a_broken_file_changes_nothing(
    server: Running, place: Place, broken: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cellar_server"), "propagate", True)
    with client(server, "alice", 3) as alice, alice.session("counter") as session:
        session.step(ONE)
        if broken == "tokens":
            (place.folder / "tokens").write_text("nonsense")
        elif broken == "rights":
            place.write_rights(RIGHTS.replace("see_all", "sea_all"))
        else:
            (place.folder / "jwks.json").write_text("{}")
        server.run(server.server.access.reload())
        assert "as they were" in caplog.text or "as it was" in caplog.text
        assert session.step(ONE).tolist() == [[2, 2]]
        not_allowed(lambda: alice.predict("other", ONE))
        with client(server, place.key.token("john")) as john:
            assert john.predict("other", ONE).tolist() == [[1, 1]]
        # once: it is not read again before it changes again
        caplog.clear()
        for _ in range(3):
            server.run(server.server.access.look())
        assert not caplog.text


def test_a_file_is_read_when_it_has_been_left_alone(server: Running, place: Place) -> None:
    look = server.server.access.look
    with client(server, "alice") as alice, alice.stream("counter") as stream_:
        stream_.open(1)
        row = np.ones((1, 2), np.float32)
        whole = (place.folder / "cellar.toml").read_text()
        server.server._watching.cancel()  # type: ignore[union-attr]
        # being written: nothing, then half of it, then all
        for text in ("", whole[: whole.index('[rights."bob"]')], whole.replace('"counter", "shared-*"', '"other"')):
            (place.folder / "cellar.toml").write_text(text)
            server.run(look())
            assert stream_.step(row).rows()
            not_allowed(lambda: alice.predict("other", ONE))
        server.run(look())
        assert alice.predict("other", ONE).tolist() == [[1, 1]]
        not_allowed(lambda: stream_.step(row))


def test_what_else_changes_in_the_file_waits(
    server: Running, place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cellar_server"), "propagate", True)
    place.write_rights("max_sessions = 5\n" + RIGHTS.replace('call = ["counter", "shared-*"]', 'call = ["other"]'))
    server.run(server.server.access.reload())
    assert "not in use before the next start: max_sessions" in caplog.text
    with client(server, "alice") as alice:
        assert alice.predict("other", ONE).tolist() == [[1, 1]]


def test_a_stream_that_never_pauses_is_ended_too(server: Running, place: Place) -> None:
    requests: queue.SimpleQueue[StreamRequest] = queue.SimpleQueue()
    is_over = threading.Event()

    def send(handle: int) -> None:
        position = 0
        while not is_over.is_set():
            frame = StreamRequest().frame
            frame.frame_id, frame.handles[:], frame.positions[:], frame.lengths[:] = 2, [handle], [position], [1]
            frame.inputs.data = ONE.tobytes()
            requests.put(StreamRequest(frame=frame))
            position += 1
            if requests.qsize() > 100:
                time.sleep(0.001)

    opening = StreamRequest()
    opening.open.frame_id, opening.open.model, opening.open.count = 1, "counter", 1
    requests.put(opening)
    streams = server.server.registry.streams
    with grpc.insecure_channel(server.address) as channel:
        call = InferenceStub(channel).Stream(iter(requests.get, None), metadata=[("authorization", "Bearer alice")])
        sender = threading.Thread(target=send, args=(next(call).opened.handles[0],))
        sender.start()
        try:
            seen = 0
            while seen < 300:
                seen += len(next(call).answer.handles)
            place.write_tokens("bob")
            server.run(server.server.access.reload())
            with pytest.raises(grpc.RpcError) as caught:
                list(call)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        finally:
            is_over.set()
            sender.join(10)
            call.cancel()
        until = time.monotonic() + 10
        while streams.count and time.monotonic() < until:
            time.sleep(0.01)
        assert not streams.count


def test_a_stream_that_only_waits_is_ended_too(server: Running, place: Place) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = InferenceStub(channel).Stream(iter(_open_then_wait()), metadata=[("authorization", "Bearer alice")])
        assert next(call).opened.ids
        place.write_tokens("bob")
        server.run(server.server.access.reload())
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert isinstance(cellar_client.errors.from_rpc(caught.value), CellarError)


def _open_then_wait() -> Iterator[StreamRequest]:
    request = StreamRequest()
    request.open.frame_id = 1
    request.open.model = "counter"
    request.open.count = 1
    yield request
    time.sleep(2)
