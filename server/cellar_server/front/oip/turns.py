"""Whose turn it is: requests of one sequence go one after the other."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """One request at a time for each key, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by key that somebody has the turn of

    def is_free(self, key: str) -> bool:
        """Nobody has it, so `take` returns at once."""
        return key not in self._waiting

    def begin(self, key: str) -> None:
        """Takes a turn that is free."""
        self._waiting[key] = deque()

    async def take(self, key: str) -> None:
        """Takes the turn when it comes; `leave` gives it up."""
        waiting = self._waiting.get(key)
        if waiting is None:
            self.begin(key)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given just now
                self.leave(key)
            raise

    def leave(self, key: str) -> None:
        """The next one has the turn."""
        waiting = self._waiting[key]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._waiting[key]
