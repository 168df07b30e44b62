"""What an engine's thread waits for: what is posted to it, and rows in a transport's lane. One bell rings for both."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from cellar_server.bell import Bell
from cellar_server.sessions.messages import Rows


class Lane(Protocol):
    """Rows that come in beside the inbox, with the bell that says so."""

    def ring(self) -> None:
        """Ends a `wait`, or the next one; from any thread."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Until the bell rings, or rang since the last time: rows came, or somebody rang it. Negative: for good."""
        ...

    def take(self) -> list[Rows]:
        """The rows that wait; does not wait."""
        ...

    def close(self) -> None:
        """Nobody takes rows here any more: they go back to their streams."""
        ...


class NoLane(Bell):
    """A bell alone, where no rows come in beside the inbox."""

    def take(self) -> list[Rows]:
        return []

    def close(self) -> None:
        pass


class Inbox:
    """Items in the order in which they were put; one thread takes them out."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self.lane: Lane = NoLane()

    def put(self, item: Any) -> None:
        """From any thread."""
        self._items.append(item)
        self.lane.ring()

    def pop(self) -> Any:
        """The next item. IndexError where there is none."""
        return self._items.popleft()

    def wait(self, timeout_s: float | None) -> bool:
        """Until something is here or in the lane that was not there when this returned last; None: for good. False
        where something is here already."""
        if self._items:
            return False
        self.lane.wait(-1.0 if timeout_s is None else timeout_s)
        return True

    @property
    def is_empty(self) -> bool:
        return not self._items
