"""Rows of unary calls are handed over together while others are computed, and at once where none are."""

import asyncio
from collections.abc import Callable

import pytest
from cellar_server.transport.gathering import MOST, QUIET, Gathering


class Calls:
    """Calls of which one comes in a pass of the loop. taken: how many rows each time."""

    def __init__(self) -> None:
        self.gathering = Gathering(asyncio.get_running_loop())
        self.gathering.take = self._take
        self.waiting = 0
        self.taken: list[int] = []

    def come(self) -> None:
        self.gathering.asking += 1
        self.waiting += 1
        self.gathering.ring()

    def _take(self) -> None:
        self.taken.append(self.waiting)
        self.waiting = 0


async def passes(count: int, each: Callable[[], None] = lambda: None) -> None:
    for _ in range(count):
        each()
        await asyncio.sleep(0)


async def test_a_call_that_is_alone_waits_for_nothing() -> None:
    calls = Calls()
    calls.come()
    await passes(1)
    assert calls.taken == [1]


async def test_those_of_one_pass_go_together() -> None:
    calls = Calls()
    for _ in range(3):
        calls.come()
    await passes(1)
    assert calls.taken == [3]


@pytest.mark.parametrize("gap", [1, QUIET - 1])
async def test_those_that_come_while_one_is_computed_go_together(gap: int) -> None:
    calls = Calls()
    calls.come()
    await passes(1)
    for _ in range(5):
        calls.come()
        await passes(gap)
    assert calls.taken == [1]
    await passes(QUIET + 1)
    assert calls.taken == [1, 5]


async def test_no_more_than_so_many_wait() -> None:
    calls = Calls()
    calls.come()
    await passes(1)
    await passes(MOST + 3, calls.come)
    assert calls.taken[:2] == [1, MOST]
    await passes(QUIET + 1)
    assert sum(calls.taken) == MOST + 4


async def test_rows_that_wait_go_when_all_others_are_answered() -> None:
    calls = Calls()
    calls.come()
    await passes(1)
    calls.come()
    await passes(1)
    assert calls.taken == [1]
    calls.gathering.asking -= 1
    await passes(1)
    assert calls.taken == [1, 1]
