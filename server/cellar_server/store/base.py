"""What a session store does. Knows no session: an entry is an id and bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class StoreError(Exception):
    """The store could not read or write; the message says why and holds no internals beyond the store's own words."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One session. token: of the request that opened it; state: a serialised SessionState; written_s: Unix time;
    keep_s: seconds after that for which it is worth keeping; fence: number of the claim under which it was read."""

    id: str
    model: str
    version: int
    token: bytes
    state: bytes
    written_s: float
    keep_s: float = 1e9
    fence: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """A session that is over. error: why, a serialised Error; token, receipt: of the close that ended it and its
    answer, a serialised Session, both empty where none did; ended_s: Unix time; keep_s, fence as in Entry."""

    id: str
    error: bytes
    token: bytes
    receipt: bytes
    ended_s: float
    keep_s: float
    fence: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A session that another server holds."""

    id: str


Known = Entry | End | Held


class Store(Protocol):
    """Sessions outside of the process. Thread-safe; every method may raise StoreError.

    A session is written only by who claimed it, which a claim by another ends: its fence is then an old one.
    """

    @property
    def is_shared(self) -> bool:
        """Several servers may use it at a time."""

    @property
    def is_held(self) -> bool:
        """Nobody else can have claimed what this server did; asked before anything is run or answered."""

    @property
    def term(self) -> int:
        """Grows whenever what is claimed may have been lost meanwhile and must be checked."""

    def claim(self, ids: Sequence[str], *, reserves: bool = False) -> dict[str, Known]:
        """Takes sessions for this server: what is known of each, nothing for unknown ids, which are taken too where
        `reserves`. The other server of a Held one is asked to let go of it."""

    def fence_of(self, id: str) -> int:
        """Number of this server's claim of a session; 0 where it holds none."""

    def write(self, entries: Sequence[Entry], ends: Sequence[End]) -> list[str]:
        """Keeps entries and forgets ended sessions, each under its fence, in one transaction; ids of those that were
        claimed by another since, and of which nothing was written."""

    def check(self, ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Which of the claimed sessions another server has now, and which are not stored at all."""

    def release(self, ids: Sequence[str]) -> None:
        """Lets go of sessions, as they were written last."""

    def read(self, model: str, version: int) -> Iterator[Entry]:
        """Claims all sessions of a model version that no other server could want."""

    def purge(self, now_s: float) -> list[tuple[str, int]]:
        """Drops unclaimed sessions that outlived their keep_s: model and version of each. now_s: Unix time."""

    def start(self, on_wanted: Callable[[str], None]) -> None:
        """Begins to hold; `on_wanted(id)`, on any thread, says that another server asks for a session."""

    def close(self) -> None:
        """Lets go of everything and ends the connection."""


class Claims:
    """The fences of what this process holds. Thread-safe."""

    def __init__(self) -> None:
        self._fences: dict[str, int] = {}
        self._last = 0
        self._lock = threading.Lock()

    def add(self, id: str, fence: int = 0) -> int:
        """A session was claimed, under its own fence or the next number here."""
        with self._lock:
            self._last += 1
            self._fences[id] = fence or self._last
            return self._fences[id]

    def of(self, id: str) -> int:
        """The fence of a session; 0 for one that is not held."""
        return self._fences.get(id, 0)

    def drop(self, ids: Iterable[str]) -> dict[str, int]:
        """Sessions are held no longer; the fences that they had."""
        with self._lock:
            return {id: fence for id in ids if (fence := self._fences.pop(id, 0))}
