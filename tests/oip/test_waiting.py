"""Answers of a stream that is read slowly wait within a bound."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from cellar_server.front.callers import ANYBODY
from cellar_server.front.oip.stream import InferStream


def stream(most: int) -> InferStream:
    registry = SimpleNamespace(
        callers=SimpleNamespace(of=lambda context: ANYBODY), config=SimpleNamespace(max_frames_in_flight=most)
    )
    return InferStream(None, registry)  # type: ignore[arg-type]


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_responses_wait_within_the_limit_and_keep_their_order() -> None:
    async def run() -> None:
        held = stream(3)

        async def fill() -> None:
            for number in range(10):
                await held.put(number)

        filling = asyncio.ensure_future(fill())
        for number in range(10):
            await settled()
            assert held.num_waiting == held.out.qsize() == min(3, 10 - number)
            assert held.out.get_nowait() == (number, None)
            held.take()
        await filling

    asyncio.run(run())


def test_at_the_end_nobody_waits_for_room() -> None:
    async def run() -> None:
        held = stream(1)
        waiting = [asyncio.ensure_future(held.put(number)) for number in range(5)]
        await settled()
        assert held.out.qsize() == 1
        held.end_waiting()
        await asyncio.gather(*waiting)
        assert held.out.qsize() == 5

    asyncio.run(run())
