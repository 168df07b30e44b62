"""Requests of one sequence take turns; those of many that come together share a run."""

from __future__ import annotations

import asyncio

from cellar_server.front.oip.turns import Turns


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_turns_come_in_the_order_of_asking_and_each_key_has_its_own() -> None:
    async def run() -> list[int]:
        turns, order = Turns(), list[int]()

        async def visit(number: int) -> None:
            await turns.take("a")
            order.append(number)
            await asyncio.sleep(0)
            turns.leave("a")

        assert turns.begin("a")
        assert not turns.begin("a")
        assert turns.begin("b")
        visits = [asyncio.ensure_future(visit(number)) for number in range(4)]
        await settled()
        assert order == []
        turns.leave("a")
        await asyncio.gather(*visits)
        assert turns.begin("a")
        return order

    assert asyncio.run(run()) == [0, 1, 2, 3]


def test_who_is_cancelled_while_it_waits_holds_up_nobody() -> None:
    async def run() -> None:
        turns = Turns()
        turns.begin("a")
        waiting = [asyncio.ensure_future(turns.take("a")) for _ in range(3)]
        await settled()
        waiting[0].cancel()
        await settled()
        turns.leave("a")
        waiting[1].cancel()  # its turn has come, and it does not know yet
        await asyncio.gather(*waiting[:2], return_exceptions=True)
        await waiting[2]
        turns.leave("a")
        assert turns.begin("a")

    asyncio.run(run())
