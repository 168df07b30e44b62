"""Whose turn it is: requests of one sequence go one after the other."""

from __future__ import annotations

import asyncio
import threading
from collections import deque


class Turns:
    """One request at a time for each key, in the order in which they came. Any thread may begin or leave; who waits
    does so on its event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by key that somebody has the turn of

    def begin(self, key: str) -> bool:
        """Takes a turn that nobody has; False where somebody does."""
        with self._lock:
            if key in self._waiting:
                return False
            self._waiting[key] = deque()
            return True

    async def take(self, key: str) -> None:
        """Takes the turn when it comes; `leave` gives it up."""
        with self._lock:
            waiting = self._waiting.get(key)
            if waiting is None:
                self._waiting[key] = deque()
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
        with self._lock:
            waiting = self._waiting[key]
            if not waiting:
                del self._waiting[key]
                return
            turn = waiting.popleft()
        turn.get_loop().call_soon_threadsafe(self._give, key, turn)

    def _give(self, key: str, turn: asyncio.Future[None]) -> None:
        if turn.done():  # who waited for it has gone
            self.leave(key)
        else:
            turn.set_result(None)
