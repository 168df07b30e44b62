"""The session table of one model: columns, not objects, beside the arena of state rows."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.config import MAX_SESSIONS
from cellar_server.errors import CellarError
from cellar_server.scheduler.work import reserve
from cellar_server.sessions.directory import id_of

# How many void handles are remembered with the reason of their end.
MAX_VOID = 10_000
# A handle: 32 bits of ticket, 8 of the engine's number, 24 of slot.
_ENGINE_BITS = 24
_PLACE_MASK = np.uint64(0xFFFFFFFF)
_TICKET_SHIFT = np.uint64(32)


def engine_of(handle: int) -> int:
    """Number of the engine that issued a handle."""
    return handle >> _ENGINE_BITS & 0xFF


def engines_of(handles: np.ndarray) -> np.ndarray:
    """Numbers [n] of the engines that issued handles uint64 [n]."""
    return (handles >> np.uint64(_ENGINE_BITS)).astype(np.int64) & 0xFF


def slots_of(handles: np.ndarray) -> np.ndarray:
    """Places int64 [n], in their engine's table, of the sessions that handles uint64 [n] stand for."""
    return (handles & np.uint64(MAX_SESSIONS - 1)).astype(np.int64)


def span(places: np.ndarray) -> np.ndarray | slice:
    """Places [n] as a slice where they stand in a row (whose selection copies nothing), else as they are."""
    n = len(places)
    first = int(places[0])
    if int(places[-1]) - first != n - 1 or (n > 2 and not (places == np.arange(first, first + n)).all()):
        return places
    return slice(first, first + n)


class Table:
    """Sessions by slot. Every column is [capacity] and untouched memory until a slot is used.

    state: float32 [capacity, S], the arena, which never moves; ticket: half of
    the one valid handle, 0 for none; stream: whom that handle was issued to; position: input taken in; accepted: the
    same with what waits; durable: the part of it that is stored; in_flight: chunks that wait or run; head, tail: first
    and last of them as rows of work, or -1; last_use, opened: on the engine's clock; max_idle, max_age: limits in
    seconds (max_age 0: none).
    """

    def __init__(self, capacity: int, state_size: int, first_ticket: int, engine: int = 0) -> None:
        self.capacity = capacity
        self._base = engine << _ENGINE_BITS
        self.state = reserve(capacity, state_size)
        # ids of 32 hexadecimal digits as two halves; of all others their names, by slot
        self._key_high = np.zeros(capacity, np.uint64)
        self._key_low = np.zeros(capacity, np.uint64)
        self._names: dict[int, str] = {}
        self.is_open = np.zeros(capacity, np.bool_)
        self.ticket = np.zeros(capacity, np.uint32)
        self.stream = np.zeros(capacity, np.uint32)
        self.position = np.zeros(capacity, np.int64)
        self.accepted = np.zeros(capacity, np.int64)
        self.durable = np.zeros(capacity, np.int64)
        self.in_flight = np.zeros(capacity, np.int16)
        self.head = np.zeros(capacity, np.int32)
        self.tail = np.zeros(capacity, np.int32)
        self.last_use = np.zeros(capacity, np.float64)
        self.opened = np.zeros(capacity, np.float64)
        self.max_idle = np.zeros(capacity, np.float32)
        self.max_age = np.zeros(capacity, np.float32)
        # what codecs hold back, only of sessions for which it is not empty
        self.held: dict[int, bytes] = {}
        self.tokens: dict[int, bytes] = {}
        # sessions that do not outlive their stream for long: seconds of grace, and when the grace of some is over
        self.graces: dict[int, float] = {}
        self.leaving: dict[int, float] = {}
        # no session reaches a limit before: whatever makes or changes one lowers it, `look_ahead` raises it again
        self.expire_at = float("inf")
        self.num_open = 0
        self._ticket = first_ticket
        self._fresh = 0
        self._freed: list[int] = []
        self._void: OrderedDict[int, CellarError] = OrderedDict()

    @property
    def has_room(self) -> bool:
        return self.num_open < self.capacity

    @property
    def num_touched(self) -> int:
        """Slots ever used: the columns' part that scans have to look at."""
        return self._fresh

    def next_slot(self) -> int:
        """The slot that `open` will use next; the caller saw that there is room."""
        return self._freed[-1] if self._freed else self._fresh

    def open(self, key: str | int, start: np.ndarray, now: float, max_idle: float, max_age: float) -> int:
        """A new session from the state row `start` float32 [S]; its slot."""
        slot = self.next_slot()
        if self._freed:
            self._freed.pop()
        else:
            self._fresh += 1
        self.state[slot] = start
        if isinstance(key, str):
            self._names[slot] = key
        else:
            self._key_high[slot], self._key_low[slot] = key >> 64, key & (1 << 64) - 1
        self.is_open[slot] = True
        self.ticket[slot] = self.stream[slot] = 0
        self.position[slot] = self.accepted[slot] = self.in_flight[slot] = 0
        if self.durable[slot]:  # without a store this column stays memory that nobody touched
            self.durable[slot] = 0
        self.head[slot] = self.tail[slot] = -1
        self.last_use[slot] = self.opened[slot] = now
        self.max_idle[slot] = max_idle
        self.max_age[slot] = max_age
        self.num_open += 1
        self._lower(slot)
        return slot

    def date_back(self, slot: int, opened: float, last_use: float) -> None:
        """An open session began elsewhere: when it was opened and used last, on the engine's clock."""
        self.opened[slot], self.last_use[slot] = opened, last_use
        self._lower(slot)

    def leave(self, slot: int, now: float) -> None:
        """The stream of a session ended: its grace begins, where it has one."""
        if slot in self.graces:
            self.leaving[slot] = now + self.graces[slot]
            self.expire_at = min(self.expire_at, self.leaving[slot])

    def _lower(self, slot: int) -> None:
        end = self.last_use[slot] + self.max_idle[slot]
        if self.max_age[slot]:
            end = min(end, self.opened[slot] + self.max_age[slot])
        self.expire_at = min(self.expire_at, float(end))

    def key_of(self, slot: int) -> str | int:
        """What the directory keeps an open session under."""
        name = self._names.get(slot)
        return int(self._key_high[slot]) << 64 | int(self._key_low[slot]) if name is None else name

    def id_of(self, slot: int) -> str:
        """The id of an open session."""
        return id_of(self.key_of(slot))

    def handle(self, slot: int) -> int:
        """The one valid handle of a slot that has one."""
        return int(self.ticket[slot]) << 32 | self._base | slot

    def handles(self, slots: np.ndarray) -> np.ndarray:
        """The valid handles uint64 [n] of slots [n] that have one each."""
        return self.ticket[slots].astype(np.uint64) << _TICKET_SHIFT | (slots | self._base).astype(np.uint64)

    def issue(self, slot: int, stream: int) -> int:
        """A handle on a slot for a stream; an earlier one becomes void."""
        if self.ticket[slot]:
            self.void(slot, CellarError(Reason.STALE_HANDLE, "the session was opened again since; this handle is void"))
        self.leaving.pop(slot, None)
        self._ticket = self._ticket % 0xFFFFFFFF + 1
        self.ticket[slot] = self._ticket
        self.stream[slot] = stream
        return self.handle(slot)

    def void(self, slot: int, error: CellarError) -> None:
        """Voids a slot's handle and remembers why."""
        if self.ticket[slot]:
            self._void[self.handle(slot)] = error
            self.ticket[slot] = self.stream[slot] = 0
            if len(self._void) > MAX_VOID:
                self._void.popitem(last=False)

    def void_stream(self, stream: int, now: float) -> None:
        """Voids all handles of a stream that is gone; their sessions stay open, for their grace where they have one."""
        count = self._fresh
        slots = np.flatnonzero((self.stream[:count] == stream) & (self.ticket[:count] != 0))
        if self.graces:
            for slot in slots.tolist():
                self.leave(slot, now)
        self.ticket[slots] = self.stream[slots] = 0

    def resolve(self, handles: np.ndarray, streams: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """Slots int64 [N] of handles uint64 [N] and which of them are valid for their streams: bool [N]."""
        slots = (handles & _PLACE_MASK).astype(np.int64) - self._base
        tickets = handles >> _TICKET_SHIFT
        inside = slots.view(np.uint64) < self._fresh
        if not inside.all():
            slots[~inside] = 0
        # a slot without a handle has ticket and stream 0, and no stream is 0
        return slots, inside & (self.ticket[slots] == tickets) & (self.stream[slots] == streams)

    def slot_of(self, handle: int, stream: int) -> int:
        """The slot of one handle; -1 where it is not valid for the stream."""
        slot = (handle & 0xFFFFFFFF) - self._base
        if not 0 <= slot < self._fresh or self.ticket[slot] != handle >> 32 or self.stream[slot] != stream:
            return -1
        return slot

    def why_void(self, handle: int) -> CellarError:
        """The error for a handle that `resolve` refused."""
        error = self._void.get(handle)
        if error is not None:
            return CellarError(error.reason, error.message, retry_after_ms=error.retry_after_ms)
        if engine_of(handle) != self._base >> _ENGINE_BITS:
            return CellarError(
                Reason.STALE_HANDLE, "a frame holds sessions of one model: this handle is not of its first row's model"
            )
        return CellarError(Reason.STALE_HANDLE, "this handle was not issued to this stream by this process")

    def hold(self, slot: int, tail: bytes) -> None:
        """Keeps what a codec holds back for a session; empty for nothing."""
        if tail:
            self.held[slot] = tail
        else:
            self.held.pop(slot, None)

    def close(self, slot: int, error: CellarError) -> None:
        """Ends a session and frees its slot; its handle answers with `error` from now on."""
        self.void(slot, error)
        self.is_open[slot] = False
        self._names.pop(slot, None)
        self.held.pop(slot, None)
        self.tokens.pop(slot, None)
        self.graces.pop(slot, None)
        self.leaving.pop(slot, None)
        self.num_open -= 1
        self._freed.append(slot)

    def expired(self, now: float) -> np.ndarray:
        """Open slots over their absolute limit, or without chunks in flight over their idle limit or their grace:
        int64 [n]."""
        n = self._fresh
        over = now - self.last_use[:n] >= self.max_idle[:n]
        for slot, at in self.leaving.items():
            over[slot] |= at <= now
        over &= self.in_flight[:n] == 0
        over |= (self.max_age[:n] > 0) & (now - self.opened[:n] >= self.max_age[:n])
        return np.flatnonzero(self.is_open[:n] & over)

    def look_ahead(self, now: float) -> None:
        """Finds out when the next open session may reach a limit: `expire_at`, inf without sessions."""
        n = self._fresh
        self.expire_at = float("inf")
        if not self.num_open:
            return
        # what has chunks in flight is used: its time to be idle begins no sooner than now
        idle_from = np.where(self.in_flight[:n] == 0, self.last_use[:n], now)
        ends = np.where(self.is_open[:n], idle_from + self.max_idle[:n], np.inf)
        old = np.where(self.is_open[:n] & (self.max_age[:n] > 0), self.opened[:n] + self.max_age[:n], np.inf)
        self.expire_at = float(min(ends.min(), old.min(), *self.leaving.values()))
