"""Rows of unary calls that come while others are computed are handed over together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# So many rows wait for no other, and so many passes of the event loop that bring none are the last.
MOST, QUIET = 64, 8


class Gathering:
    """The bell of the lane of unary calls. take: takes the rows that wait; asking: calls that are not answered, those
    whose rows wait among them.

    grpc.aio accepts a call in a pass of the event loop or two. Rows handed over one by one, while earlier ones are
    computed, would make small runs, and a turn at the interpreter for each. Use on the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.take: Callable[[], object] = lambda: None
        self.asking = 0
        self._waiting = 0  # rows

    def ring(self) -> None:
        """A row waits."""
        self._waiting += 1
        if self._waiting == 1:
            self._loop.call_soon(self._look, 1, 0)

    def _look(self, before: int, quiet: int) -> None:
        """before: rows that waited a pass ago; quiet: passes since one came."""
        quiet = quiet + 1 if self._waiting == before else 0
        if self._waiting < MOST and self.asking > self._waiting and quiet < QUIET:
            self._loop.call_soon(self._look, self._waiting, quiet)
            return
        self._waiting = 0
        self.take()
