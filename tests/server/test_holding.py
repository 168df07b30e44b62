"""Where the front finds sessions: here, in the store, at another server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cellar_server.errors import CellarError
from cellar_server.front import holding as holdings
from cellar_server.front.holding import Holding
from cellar_server.sessions.messages import Call

from tests.fakes.bench import Bench, reason_of
from tests.fakes.runtime import counter_model
from tests.fakes.store import FakeStore, Shelf


class Engine:
    """Answers calls at once, on a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def post(self, request: Call) -> None:
        request.to.receive(self.bench.sessions._call(request))
        self.cycle()

    def cycle(self) -> None:
        self.bench.sessions.persist()
        self.bench.sessions.tend()
        self.bench.sessions.take_replies()


class Replica:
    """A holding over one engine."""

    def __init__(self, shelf: Shelf, name: str) -> None:
        self.store = FakeStore(shelf, name, is_shared=True)
        self.bench = Bench(counter_model(), store=self.store, durability="step")
        self.engine = Engine(self.bench)
        self.holding = Holding(self.bench.directory, {("counter", 1): self.engine})  # type: ignore[dict-item]
        # the bench is in the directory where an engine would be
        self.bench.post = self.engine.post  # type: ignore[attr-defined]
        self.holding.start(self.store, can_hold_more=False)

    async def open(self, id: str) -> Any:
        errors = await self.holding.reserve([id])
        if id in errors:
            return errors[id]
        (opened,) = self.bench.sessions.open([id])
        self.engine.cycle()
        return opened


async def pair() -> tuple[Replica, Replica]:
    shelf = Shelf()
    return Replica(shelf, "a"), Replica(shelf, "b")


async def test_a_session_is_taken_up_where_it_is_asked_for() -> None:
    a, b = await pair()
    await a.open("s")
    a.store.close()
    assert await b.holding.engine_of("s") is b.bench
    with pytest.raises(CellarError) as caught:
        await b.holding.engine_of("unknown")
    assert reason_of(caught.value) == "SESSION_NOT_FOUND"


async def test_a_held_session_comes_when_its_holder_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = await pair()
    await a.open("s")
    monkeypatch.setattr(holdings, "HANDOVER_S", 0.02)
    with pytest.raises(CellarError) as caught:
        await b.holding.engine_of("s")
    assert reason_of(caught.value) == "LEASE_LOST"
    assert caught.value.retry_after_ms > 0
    assert ("a", "s") in a.store.shelf.wanted
    asking = asyncio.ensure_future(b.holding.engine_of("s"))
    await asyncio.sleep(0)
    a.holding.wanted("s")
    assert await asking is b.bench
    assert not a.bench.directory.has("s")


async def test_an_id_is_taken_everywhere_and_free_again_where_it_was_not_used() -> None:
    a, b = await pair()
    await a.open("s")
    taken = asyncio.ensure_future(b.open("s"))
    await asyncio.sleep(0)
    a.holding.wanted("s")
    assert reason_of(await taken) == "SESSION_EXISTS"
    assert await a.holding.reserve(["t"]) == {}
    a.holding.wanted("t")  # reserved here, and never opened
    assert await b.holding.reserve(["t"]) == {}
    assert await a.holding.reserve(["u"]) == {}
    await a.holding.settle(["u"])
    assert await b.holding.reserve(["u"]) == {}


async def test_what_stands_in_the_way_is_said() -> None:
    a, b = await pair()
    await a.open("s")
    a.store.close()
    b.store.is_broken = True
    assert reason_of((await b.holding.take_up(["s"]))["s"]) == "STORE_FAILED"
    b.store.is_broken, b.store.is_held = False, False
    assert reason_of((await b.holding.take_up(["s"]))["s"]) == "LEASE_LOST"
    b.store.is_held = True
    b.holding.engines.clear()
    assert reason_of((await b.holding.take_up(["s"]))["s"]) == "MODEL_NOT_FOUND"
    b.holding.engines["counter", 1] = b.engine  # type: ignore[assignment]
    assert await b.holding.take_up(["s"]) == {}


async def test_an_end_is_told_by_every_server_and_its_close_answered_again() -> None:
    a, b = await pair()
    await a.open("s")
    a.bench.sessions.close("s", b"t" * 16)
    a.engine.cycle()
    receipt = await b.holding.receipt("s", b"t" * 16)
    assert receipt is not None
    assert receipt.id == "s"
    assert await b.holding.receipt("s", b"u" * 16) is None
    assert reason_of((await b.holding.take_up(["s"]))["s"]) == "SESSION_CLOSED"
    assert (await b.open("s")).position == 0
