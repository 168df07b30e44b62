"""What a balancer can choose a server by goes along with calls about sessions, and with no other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent import futures
from contextlib import suppress

import grpc
import pytest
from cellar_client import AsyncClient, CellarError, Client

Seen = dict[str, str | None]


class Spy(grpc.GenericRpcHandler):
    """Notes each method's key; answers nothing."""

    def __init__(self) -> None:
        self.keys: Seen = {}

    def service(self, details: grpc.HandlerCallDetails) -> None:
        method = details.method.rpartition("/")[2]
        self.keys[method] = dict(details.invocation_metadata).get("cellar-session")


@pytest.fixture
def spy() -> Iterator[tuple[str, Spy]]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    spy = Spy()
    server.add_generic_rpc_handlers((spy,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", spy
    server.stop(0).wait()


SESSIONS = {"GetSession": "mine", "ListSessions": "mine", "CloseSession": "mine", "Generate": "mine", "Stream": "mine"}


def test_calls_about_sessions_carry_the_clients_key(spy: tuple[str, Spy]) -> None:
    address, seen = spy
    with Client(address, affinity="mine", token="secret", timeout=0.5) as client:
        for call in (
            client.models,
            lambda: client.model("m"),
            lambda: list(client.generate("m")),
        ):
            with suppress(CellarError):
                call()
        assert seen.keys == {"ListModels": None, "GetModel": None, "Generate": None}
        for call in (
            lambda: client.resume("s"),
            client.sessions,
            lambda: client.close_session("s"),
            lambda: list(client.generate("m", session_id="s")),
            lambda: client._shared_wire()._reader.join(10),
        ):
            with suppress(CellarError):
                call()
    assert seen.keys == {"ListModels": None, "GetModel": None, **SESSIONS}


def test_the_asynchronous_client_too(spy: tuple[str, Spy]) -> None:
    address, seen = spy

    async def calls() -> None:
        async with AsyncClient(address, affinity="mine", timeout=0.5) as client:
            for call in (client.models(), client.resume("s"), client.sessions(), client.close_session("s")):
                with suppress(CellarError):
                    await call
            with suppress(CellarError):
                async for _ in client.generate("m", session_id="s"):
                    pass
            await asyncio.wait_for(client._shared_wire()._reader, 10)

    asyncio.run(calls())
    assert seen.keys == {"ListModels": None, **SESSIONS}


def test_each_client_has_a_key_of_its_own_unless_told(spy: tuple[str, Spy]) -> None:
    address, seen = spy
    keys = []
    for _ in range(2):
        with Client(address, timeout=0.5) as client, suppress(CellarError):
            client.sessions()
        keys.append(seen.keys["ListSessions"])
    assert keys[0] != keys[1]
    assert {len(key or "") for key in keys} == {32}


def test_a_key_that_no_header_can_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        Client("127.0.0.1:1", affinity="two\nlines")
