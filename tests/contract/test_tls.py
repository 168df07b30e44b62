"""TLS and mutual TLS: real handshakes, names by certificate, files that change under a running server."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import cellar_client
import grpc
import numpy as np
import pytest
from cellar_client.cli import main
from cellar_proto.v1.inference_pb2 import StepRequest
from cellar_proto.v1.inference_pb2_grpc import InferenceStub
from cellar_proto.v1.tensor_pb2 import Tensor
from cellar_server.access import Access
from cellar_server.config import Config
from cellar_server.credentials import read_pems
from cellar_server.front.callers import Callers
from cellar_server.front.open_streams import OpenStreams
from cellar_server.rights import Rights
from cellar_server.runtime.base import StartupError

from tests.contract.conftest import Running
from tests.fakes.certificates import Authority, write
from tests.fakes.zoo import write_counter

ONE = np.ones(2, np.float32)


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority()


Serving = Callable[..., AbstractContextManager[Running]]


@pytest.fixture
def serving(transport: str) -> Serving:
    return functools.partial(_serving, transport=transport)


@contextmanager
def _serving(folder: Path, pair: tuple[bytes, bytes], **options: Any) -> Iterator[Running]:
    if not (folder / "zoo").exists():
        write_counter(folder / "zoo")
    cert, key = write(folder, pair)
    running = Running(
        Config(listen="127.0.0.1:0", models=folder / "zoo", tls_cert=cert, tls_key=key, drain_s=5, **options)
    )
    try:
        yield running
    finally:
        running.stop()


def client(server: Running, authority: Authority, timeout: float = 10, **options: Any) -> cellar_client.Client:
    return cellar_client.Client(server.address, root_certificates=authority.pem, timeout=timeout, **options)


def refused(server: Running, authority: Authority, **options: Any) -> bool:
    """Whether no handshake succeeds."""
    with client(server, authority, timeout=1.5, **options) as stranger:
        try:
            stranger.models()
        except cellar_client.Unavailable:
            return True
    return False


def test_a_server_is_believed_by_its_authority_alone(serving: Serving, tmp_path: Path, ca: Authority) -> None:
    with serving(tmp_path, ca.server()) as server:
        with client(server, ca) as one, one.session("counter") as session:
            assert session.step(ONE).tolist() == [[1, 1]]
        assert refused(server, Authority())  # of the same name, with another key
        with cellar_client.Client(server.address, timeout=1.5) as plain, pytest.raises(cellar_client.Unavailable):
            plain.models()
        # nor by another name than its own
        assert refused(server, ca, server_name="elsewhere.example")
        with client(server, ca, server_name="localhost") as one:
            assert [each.name for each in one.models()] == ["counter"]


async def test_the_client_of_asyncio_takes_the_same_arguments(serving: Serving, tmp_path: Path, ca: Authority) -> None:
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    cert, key = write(tmp_path, ca.issue("alice"), "alice")
    with serving(tmp_path, ca.server(), tls_client_ca=str(tmp_path / "ca.pem")) as server:
        async with cellar_client.AsyncClient(
            server.address, root_certificates=tmp_path / "ca.pem", certificate=cert, key=key, timeout=10
        ) as one:
            assert [each.name for each in await one.models()] == ["counter"]


def test_callers_are_known_by_certificate(serving: Serving, tmp_path: Path, ca: Authority) -> None:
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    with serving(tmp_path, ca.server(), tls_client_ca=str(tmp_path / "ca.pem")) as server:
        pairs = {
            "alice": ca.issue("alice"),
            "spiffe://home/bob": ca.issue("ignored", alternatives=("spiffe://home/bob", "bob.example")),
        }
        clients = [client(server, ca, certificate=cert, key=key) for cert, key in pairs.values()]
        with clients[0] as alice, clients[1] as bob:
            hers = alice.session("counter", id="mine", keep=True)
            hers.step(ONE)
            with pytest.raises(cellar_client.SessionNotFound):
                bob.resume("mine")
            assert bob.session("counter", id="mine", keep=True).step(ONE).tolist() == [[1, 1]]
            scopes = {
                place.rpartition("\x1f")[0] for place, _ in server.server.registry.directory.ids("", 9, None, None)
            }
            assert scopes == set(pairs)
            with alice.stream("counter") as stream:
                stream.open(["mine"], resume=True)
                assert stream.step(np.ones((1, 2), np.float32)).outputs.tolist() == [[2, 2]]
        # a step in a call of its own is by the certificate too
        cert, key = pairs["alice"]
        credentials = grpc.ssl_channel_credentials(ca.pem, key, cert)
        with grpc.secure_channel(server.address, credentials) as channel:
            given = StepRequest(session_id="mine", inputs=Tensor(data=ONE.tobytes()))
            assert InferenceStub(channel).Step(given, timeout=5).position == 3
        # no certificate, one of another authority, an expired one
        assert refused(server, ca)
        for cert, key in (Authority().issue("alice"), ca.issue("alice", ends_in=timedelta(seconds=-60))):
            assert refused(server, ca, certificate=cert, key=key)
        # a good one whose subject is no name, or that has none
        for bad in (ca.issue("two words"), ca.issue()):
            with client(server, ca, certificate=bad[0], key=bad[1]) as one:
                for verb in (one.models, one.sessions, lambda one=one: one.predict("counter", ONE)):
                    with pytest.raises(cellar_client.Unauthenticated):
                        verb()
        # a wrong token is not made good by a certificate
        cert, key = pairs["alice"]
        with (
            client(server, ca, certificate=cert, key=key, token="x") as one,
            pytest.raises(cellar_client.Unauthenticated),
        ):
            one.models()


def test_new_certificates_are_used_by_new_connections_beside_live_streams(
    serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cellar_server"), "propagate", True)
    old, new = Authority("old"), Authority("new")
    with serving(tmp_path, old.server()) as server:
        reload = server.server.access.reload
        with client(server, old) as before, before.session("counter") as session:
            session.step(ONE)
            # a pair that is none, an expired one: the old one stays, and the log says why
            for pair, why in (
                ((new.server()[0], old.server()[1]), "is not the key"),
                ((b"nothing", b"nothing"), "no certificate"),
                (new.server(ends_in=timedelta(seconds=-5)), "is valid from"),
            ):
                caplog.clear()
                write(tmp_path, pair)
                server.run(reload())
                assert "stay as they were" in caplog.text
                assert why in caplog.text
                assert not refused(server, old)
            write(tmp_path, new.server())
            server.run(reload())
            assert refused(server, old)
            with client(server, new) as after:
                assert [each.name for each in after.models()] == ["counter"]
            assert session.step(ONE).tolist() == [[2, 2]]


def test_new_authorities_of_callers_are_used_by_new_connections(
    serving: Serving, tmp_path: Path, ca: Authority
) -> None:
    first, second = Authority("first"), Authority("second")
    (tmp_path / "ca.pem").write_bytes(first.pem)
    with serving(tmp_path, ca.server(), tls_client_ca=str(tmp_path / "ca.pem")) as server:
        pairs = [each.issue("alice") for each in (first, second)]
        assert [refused(server, ca, certificate=cert, key=key) for cert, key in pairs] == [False, True]
        (tmp_path / "ca.pem").write_bytes(second.pem)
        server.run(server.server.access.reload())
        assert [refused(server, ca, certificate=cert, key=key) for cert, key in pairs] == [True, False]


def test_files_that_cannot_be_used_end_the_start(tmp_path: Path, ca: Authority) -> None:
    cert, key = write(tmp_path, ca.server())
    assert read_pems(Config(tls_cert=cert, tls_key=key)).asks_for_certificates is False
    for options, why in (
        ({"tls_cert": cert, "tls_key": cert}, "no private key"),
        ({"tls_cert": str(tmp_path / "missing"), "tls_key": key}, "cannot be read"),
        ({"tls_cert": cert, "tls_key": write(tmp_path, ca.server(), "other")[1]}, "is not the key"),
        ({"tls_cert": cert, "tls_key": key, "tls_client_ca": key}, "tls_client_ca.* no certificate"),
    ):
        with pytest.raises(StartupError, match=why):
            read_pems(Config(**options))
    for expired in (timedelta(seconds=-1), timedelta(days=-30)):
        cert, key = write(tmp_path, ca.server(ends_in=expired))
        with pytest.raises(StartupError, match="is valid from"):
            read_pems(Config(tls_cert=cert, tls_key=key))


def test_a_certificate_that_ends_soon_is_warned_of(
    tmp_path: Path, ca: Authority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cellar_server"), "propagate", True)
    cert, key = write(tmp_path, ca.server(ends_in=timedelta(days=3)))
    assert "PRIVATE" not in repr(read_pems(Config(tls_cert=cert, tls_key=key)))
    assert "ends on" in caplog.text


def test_listening_beyond_the_loopback_without_either_is_said_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ca: Authority
) -> None:
    monkeypatch.setattr(logging.getLogger("cellar_server"), "propagate", True)
    cert, key = write(tmp_path, ca.server())
    for options, said in (
        ({"listen": "127.0.0.1:1"}, []),
        ({"listen": "0.0.0.0:1", "insecure_listen": True}, ["without TLS", "without tokens"]),
        ({"listen": "0.0.0.0:1", "insecure_listen": True, "tls_cert": cert, "tls_key": key}, ["without tokens"]),
    ):
        caplog.clear()
        config = Config(**options)
        Access(config, Callers(config), OpenStreams()).announce()
        assert len(caplog.records) == len(said)
        assert all(each in caplog.text for each in said)


def test_the_command_takes_flags_and_environment(
    serving: Serving,
    tmp_path: Path,
    ca: Authority,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "tokens").write_text(f"{hashlib.sha256(b'secret').hexdigest()} alice\n")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3,4\n")
    cert, key = write(tmp_path, ca.issue("two words"), "client")
    with serving(
        tmp_path, ca.server(), tls_client_ca=str(tmp_path / "ca.pem"), tokens=str(tmp_path / "tokens")
    ) as server:
        flags = ["--tls-ca", str(tmp_path / "ca.pem"), "--tls-cert", cert, "--tls-key", key]
        assert main(["models", "--server", server.address]) == 1
        assert main(["--server", server.address, *flags, "models"]) == 1  # the certificate's subject is no name
        assert "UNAUTHENTICATED" in capsys.readouterr().err
        named = ["--token-file", str(tmp_path / "token")]
        assert main(["--server", server.address, *flags, "models", *named]) == 0
        assert main(["models", "--server", server.address, *flags, *named]) == 0
        for name, value in zip(("CA", "CERT", "KEY"), flags[1::2], strict=True):
            monkeypatch.setenv(f"CELLAR_CLIENT_TLS_{name}", value)
        monkeypatch.setenv("CELLAR_TOKEN", "secret")
        capsys.readouterr()
        assert main(["models", "--server", server.address]) == 0
        assert "counter" in capsys.readouterr().out
        scored = ["--model", "counter", "--input", str(tmp_path / "rows.csv"), "--output", str(tmp_path / "out.csv")]
        assert main(["score", "--server", server.address, "--features", "a,b", *scored]) == 0
        assert (tmp_path / "out.csv").read_text().count("\n") == 3


def test_health_and_top_make_themselves_known(
    serving: Serving, tmp_path: Path, ca: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a certificate to connect at all, and by a token as who they ask."""
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "tokens").write_text(f"{hashlib.sha256(b'secret').hexdigest()} anna\n")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    cert, key = write(theirs, ca.issue("prober"))
    options = {
        "tls_client_ca": str(tmp_path / "ca.pem"),
        "tokens": str(tmp_path / "tokens"),
        "rights": {"anna": Rights(), "prober": Rights(call=())},
    }
    with serving(tmp_path, ca.server(), **options) as server:
        certified = ["--server", server.address, "--tls-ca", str(tmp_path / "ca.pem"), "--tls-cert", cert]
        certified += ["--tls-key", key]
        top = ["top", "--once", "--interval", "0.2"]
        assert main(["health", *certified]) == 0
        assert main([*top, *certified, "--token-file", str(tmp_path / "token")]) == 0
        assert "counter/1" in capsys.readouterr().out
        assert main([*top, *certified]) == 0
        assert "counter" not in capsys.readouterr().out  # who may not call it is not shown it
        assert main(["health", "--timeout", "0.5", *certified[:4]]) == 1
        assert main([*top, *certified[:4]]) == 1
        assert "no answer" in capsys.readouterr().out
