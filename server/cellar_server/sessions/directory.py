"""All sessions of the process by id: which engine holds one, and why one is gone."""

from __future__ import annotations

import heapq
import re
import secrets
import threading
from collections import OrderedDict
from typing import Any

from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.config import MAX_SESSIONS
from cellar_server.errors import CellarError
from cellar_server.sessions.index import Index
from cellar_server.sessions.quota import Quota

_HEX = re.compile(r"[0-9a-f]{32}")
_SLOT_BITS = 40
# Between the caller that a session belongs to and the id that this caller knows it by; no id holds it.
SCOPE_END = "\x1f"
# How many closed sessions are remembered with the reason of their end.
MAX_ENDED = 10_000
# A handle has eight bits for the engine's number.
MAX_ENGINES = 1 << 8
# Sessions of all engines together that the index is reserved for.
MAX_OPEN = 4 * MAX_SESSIONS


def key_of(id: str) -> str | int:
    """What a session is kept under: 128-bit ids as numbers, which take half the memory of their 32 digits."""
    return int(id, 16) if _HEX.fullmatch(id) else id


def id_of(key: str | int) -> str:
    return key if isinstance(key, str) else f"{key:032x}"


def scoped(scope: str, id: str) -> str:
    """A caller's id in that caller's scope."""
    return scope + id.replace(SCOPE_END, "\0")  # which `check_id` refuses, and nobody has


def scope_of(key: str | int) -> str:
    """The caller that a key belongs to; "" for nobody in particular."""
    return key.rpartition(SCOPE_END)[0] if isinstance(key, str) else ""


def shown(id: str) -> str:
    """An id as its caller knows it: without the scope in front of it."""
    return id.rpartition(SCOPE_END)[2]


def owner(id: str) -> str:
    """The caller in whose scope an id is; "" for nobody's in particular."""
    return id.rpartition(SCOPE_END)[0]


def mint() -> str:
    """128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


def check_id(id: str) -> None:
    """CellarError INVALID_REQUEST unless `id` is 1 to 128 printable ASCII characters."""
    id = shown(id)
    if not (1 <= len(id) <= 128 and id.isascii() and id.isprintable()):
        raise CellarError(Reason.INVALID_REQUEST, "a session id is 1 to 128 printable ASCII characters")


class Directory:
    """Ids of open sessions, and the ends of the last closed ones. Thread-safe."""

    def __init__(self, quota: Quota | None = None) -> None:
        self._quota = quota
        self._engines: list[Any] = []
        self._places = Index(MAX_OPEN)
        self._ended: OrderedDict[str | int, tuple[CellarError, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def add_engine(self, engine: Any) -> int:
        """Registers an engine; its number for `claim`."""
        with self._lock:
            for number, taken in enumerate(self._engines):
                if taken is None:
                    self._engines[number] = engine
                    return number
            if len(self._engines) == MAX_ENGINES:
                raise CellarError(Reason.OVERLOADED, f"a server holds {MAX_ENGINES} models at most")
            self._engines.append(engine)
            return len(self._engines) - 1

    def remove_engine(self, number: int) -> None:
        """Frees the number of an engine that holds no sessions any more."""
        with self._lock:
            self._engines[number] = None

    def claim(self, key: str | int, engine: int, slot: int, *, is_new: bool = True) -> bool:
        """Takes an id for a slot of an engine; False where it is taken. is_new: else it is a session that was open
        before, which no limit keeps out. OVERLOADED where its caller or its model has too many."""
        place = engine << _SLOT_BITS | slot
        with self._lock:
            quota, of = self._quota, (scope_of(key), self._engines[engine].name) if self._quota else ("", "")
            if quota is not None and is_new and key not in self._places:
                quota.check(*of)
            is_free = self._places.add(key, place)
            if quota is not None and is_free:
                quota.add(*of)
            if is_free and self._ended:
                self._ended.pop(key, None)
        return is_free

    def slot_of(self, id: str, engine: int) -> int:
        """Slot of a session of this engine; CellarError SESSION_NOT_FOUND, SESSION_EXPIRED, SESSION_CLOSED."""
        place = self._place(id)
        if place >> _SLOT_BITS != engine:
            raise CellarError(Reason.SESSION_NOT_FOUND, f"session {shown(id)!r} is a session of another model")
        return place & ((1 << _SLOT_BITS) - 1)

    def engine_of(self, id: str) -> Any:
        """The engine that holds a session; CellarError SESSION_NOT_FOUND, SESSION_EXPIRED, SESSION_CLOSED."""
        return self._engines[self._place(id) >> _SLOT_BITS]

    def has(self, id: str) -> bool:
        with self._lock:
            return key_of(id) in self._places

    def _place(self, id: str) -> int:
        key = key_of(id)
        with self._lock:
            place = self._places.get(key)
        if place is None:
            ended = self._ended.get(key)
            if ended is not None:
                error = ended[0]
                raise CellarError(error.reason, error.message, retry_after_ms=error.retry_after_ms)
            raise CellarError(Reason.SESSION_NOT_FOUND, f"there is no session {shown(id)!r}")
        return place

    def release(self, key: str | int, error: CellarError, receipt: Any = None) -> None:
        """Frees an id and remembers why; `receipt` answers a repeated close."""
        with self._lock:
            if self._quota is not None and (place := self._places.get(key)) is not None:
                self._quota.remove(scope_of(key), self._engines[place >> _SLOT_BITS].name)
            self._places.remove(key)
            self._ended[key] = (error, receipt)
            if len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)

    def receipt_of(self, id: str) -> Any:
        """What `release` kept for a closed session, or None."""
        ended = self._ended.get(key_of(id))
        return None if ended is None else ended[1]

    def engine_that_closed(self, id: str) -> Any:
        """The engine whose receipt a closed session left, or None."""
        receipt = self.receipt_of(id)
        return None if receipt is None else self._engines[receipt[0]]

    def ids(self, after: str, limit: int, model: str | None = None, scope: str | None = "") -> list[tuple[str, Any]]:
        """Up to `limit` open sessions of a scope with their engines, in the order of their ids, from behind `after`.
        Scope None: of all scopes, each id with its scope in front of it."""
        engines = self._engines
        found = (
            (id, place)
            for key, place in self._entries()
            if _is_in(scope, whole := id_of(key))
            and (id := whole if scope is None else shown(whole)) > after
            and (model is None or engines[place >> _SLOT_BITS].name == model)
        )
        return [(id, engines[place >> _SLOT_BITS]) for id, place in heapq.nsmallest(limit, found)]

    def count(self, model: str | None = None, scope: str | None = "") -> int:
        """Open sessions of a scope (None: of all scopes), of one model or of all."""
        if model is None and not scope:
            return len(self._places)
        return sum(
            _is_in(scope, id_of(key)) and (model is None or self._engines[place >> _SLOT_BITS].name == model)
            for key, place in self._entries()
        )

    def _entries(self) -> list[tuple[str | int, int]]:
        with self._lock:
            return self._places.items()


def _is_in(scope: str | None, id: str) -> bool:
    if scope is None:
        return True
    return id.startswith(scope) if scope else SCOPE_END not in id
