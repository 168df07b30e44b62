"""What a session's client keeps until the server has it safe, to send it again to a server that does not."""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass

from cellar_client.errors import (
    CellarError,
    LeaseLost,
    SessionLost,
    ShuttingDown,
    StaleHandle,
    StoreFailed,
    Unavailable,
)

# Bytes of one session's chunks that are kept. Where nothing is stored older ones go, and with them the way back to
# before them; where something is, the sender waits until more is durable.
MAX_BYTES = 16 << 20
# What a kept chunk counts for beside its content.
CHUNK_BYTES = 256


PASSING = (Unavailable, ShuttingDown, StoreFailed, LeaseLost)


def is_passing(error: CellarError) -> bool:
    """What a session waits out: the server or its store may come back within the call's time, the session may be on its
    way from another server, or in the store."""
    if isinstance(error, StaleHandle):
        return error.retry_after_s is not None
    return isinstance(error, PASSING)


class Patience:
    """When to try again: delays that double, jittered, within the call's time. num_servers: that stand for one another;
    one that is stopping is not waited for where there are others."""

    def __init__(self, timeout_s: float, num_servers: int = 1) -> None:
        self._num_servers = num_servers
        self._until = time.monotonic() + timeout_s
        self._delay_s = 0.05
        self.num_pauses = 0

    @property
    def left_s(self) -> float:
        return max(0.001, self._until - time.monotonic())

    def pause_s(self, error: CellarError) -> float:
        """How long to wait before the next try; the error is raised where it does not pass, or the call's time would be
        over."""
        if not is_passing(error):
            raise error
        is_elsewhere = isinstance(error, ShuttingDown) and self._num_servers > 1
        pause = (0.0 if is_elsewhere else error.retry_after_s) or self._delay_s * random.uniform(0.5, 1.0)
        self._delay_s = min(2 * self._delay_s, 1.0)
        if time.monotonic() + pause >= self._until:
            raise error
        self.num_pauses += 1
        return pause


@dataclass(frozen=True)
class Chunk:
    """One chunk as it was sent. start, length: in the model's unit of position."""

    start: int
    data: bytes
    length: int
    ends: bool


class Replay:
    """Answered chunks from the durable position on, oldest first."""

    def __init__(self, position: int, *, drops: bool, max_bytes: int = MAX_BYTES) -> None:
        self._chunks: deque[Chunk] = deque()
        self._num_bytes = 0
        self._max_bytes = max_bytes
        self._drops = drops
        self.first = position  # from which on everything is held

    def add(self, chunk: Chunk) -> None:
        """A chunk was answered."""
        self._chunks.append(chunk)
        self._num_bytes += len(chunk.data) + CHUNK_BYTES
        while self._drops and self._num_bytes > self._max_bytes:
            self._drop()

    @property
    def is_full(self) -> bool:
        """Nothing more should be sent until more is durable."""
        return self._num_bytes > self._max_bytes

    def settle(self, durable_position: int) -> None:
        """The server holds the session up to here, whatever happens to it."""
        while self._chunks and self._chunks[0].start + self._chunks[0].length <= durable_position:
            self._drop()

    def _drop(self) -> None:
        gone = self._chunks.popleft()
        self._num_bytes -= len(gone.data) + CHUNK_BYTES
        self.first = gone.start + gone.length

    def since(self, position: int, answered: int) -> list[Chunk]:
        """The chunks that a server which stands at `position` has not taken in. SessionLost where they are not held."""
        if position < min(self.first, answered):
            raise SessionLost(
                f"the server stands at {position}, {answered} was answered, and only what came from {self.first} on "
                "is kept here",
                expected_position=position,
            )
        return [chunk for chunk in self._chunks if chunk.start >= position]
