"""What a session store does. Knows no session: an entry is an id and bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class StoreError(Exception):
    """The store could not read or write; the message says why and holds no internals beyond the store's own words."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One session. token: of the request that opened it; state: a serialised SessionState; written_s: Unix time."""

    id: str
    model: str
    version: int
    token: bytes
    state: bytes
    written_s: float


class Store(Protocol):
    """Used by one engine's thread at a time."""

    def write(self, entries: Sequence[Entry], gone: Sequence[str]) -> None:
        """Keeps entries and forgets ids, all of it or nothing. StoreError."""

    def read(self, model: str, version: int) -> Iterator[Entry]:
        """The kept sessions of a model version. StoreError."""

    def close(self) -> None:
        """Ends the connection."""
