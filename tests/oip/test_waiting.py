"""Answers of a stream that is read slowly wait within a bound, and none is left behind at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
from cellar_server.front.callers import ANYBODY
from cellar_server.front.oip.stream import InferStream


class Context:
    """A stream of one message and its end; the message is taken before `read` would give it, as transports do."""

    is_threaded = True

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def peer(self) -> str:
        return "fake"

    def read_ahead(self, window: int, take: Callable[[bytes], bool]) -> None:
        assert take(b"asked")

    async def read(self) -> Any:
        return grpc.aio.EOF

    def answer(self, response: bytes) -> None:
        self.written.append(response)


class Taker:
    """Takes a message, and answers it when it is told to."""

    def take(self, message: bytes, caller: Any, asker: Any) -> bool:
        self.answer = asker.answer
        return True


def stream(most: int, context: Any = None) -> InferStream:
    registry = SimpleNamespace(
        callers=SimpleNamespace(of=lambda context: ANYBODY), config=SimpleNamespace(max_frames_in_flight=most)
    )
    return InferStream(context, registry)  # type: ignore[arg-type]


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


def test_a_stream_ends_behind_the_answers_to_what_was_taken() -> None:
    async def run() -> None:
        context, taker = Context(), Taker()
        running = asyncio.ensure_future(stream(3, context).run(None, taker, is_real=False))  # type: ignore[arg-type]
        await settled()
        assert not running.done()
        await asyncio.to_thread(taker.answer, b"answered")
        await running
        assert context.written == [b"answered"]

    asyncio.run(run())
