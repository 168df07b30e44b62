"""Channelz over grpc.aio: the server, its connections and calls, where they were asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from cellar_server.config import Config
from cellar_server.front.callers import Callers
from cellar_server.front.channelz import add_channelz
from cellar_server.rights import Rights
from cellar_server.runtime.base import StartupError
from grpc_channelz.v1 import channelz_pb2
from grpc_channelz.v1.channelz_pb2 import GetServerSocketsRequest, GetServersRequest
from grpc_channelz.v1.channelz_pb2_grpc import ChannelzStub

from tests.contract.conftest import Running
from tests.fakes.zoo import write_counter


def test_a_server_shows_its_connections_and_calls(tmp_path: Path) -> None:
    write_counter(tmp_path)
    running = Running(Config(listen="127.0.0.1:0", transport="aio", models=tmp_path, channelz=True, drain_s=1))
    with grpc.insecure_channel(running.address) as channel:
        stub = ChannelzStub(channel)
        shown = stub.GetServers(GetServersRequest(), timeout=10).server
        # servers of other tests are of this process too: ours is the one that has this call's connection
        sockets = {
            socket.name
            for server in shown
            for socket in stub.GetServerSockets(
                GetServerSocketsRequest(server_id=server.ref.server_id), timeout=10
            ).socket_ref
        }
        assert any(name.startswith("chttp2 ipv4:127.0.0.1:") for name in sockets)
        again = stub.GetServers(GetServersRequest(), timeout=10).server
        started = {server.ref.server_id: server.data.calls_started for server in again}
        assert any(started[server.ref.server_id] > server.data.calls_started for server in shown)
    running.stop()


def test_it_is_off_unless_asked_for(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ChannelzStub(channel).GetServers(GetServersRequest(), timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_the_native_transport_has_none() -> None:
    with pytest.raises(StartupError, match="--transport aio"):
        add_channelz(SimpleNamespace(name="native"), Callers(Config()))


@pytest.mark.parametrize("rights", [None, {"ops": Rights(call=(), administer=("*",)), "*": Rights(administer=("c*",))}])
def test_it_is_for_who_administers_all_models(tmp_path: Path, rights: dict[str, Rights] | None) -> None:
    """Where callers are asked who they are and no rights are declared, that is nobody."""
    write_counter(tmp_path)
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{hashlib.sha256(name.encode()).hexdigest()} {name}\n" for name in ("ops", "anna")))
    config = Config(
        listen="127.0.0.1:0",
        transport="aio",
        models=tmp_path,
        channelz=True,
        drain_s=1,
        tokens=str(tokens),
        rights=rights or {},
    )
    running = Running(config)
    with grpc.insecure_channel(running.address) as channel:
        stub = ChannelzStub(channel)

        def code(token: str, method: str = "GetServers") -> grpc.StatusCode:
            metadata = [("authorization", f"Bearer {token}")] if token else []
            request = getattr(channelz_pb2, f"{method}Request")()
            return getattr(stub, method).future(request, timeout=10, metadata=metadata).code()

        assert code("ops") == (grpc.StatusCode.OK if rights else grpc.StatusCode.PERMISSION_DENIED)
        for method in channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].methods_by_name:
            assert code("anna", method) == grpc.StatusCode.PERMISSION_DENIED
            assert code("", method) == grpc.StatusCode.UNAUTHENTICATED
    running.stop()
