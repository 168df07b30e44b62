"""What of the sessions is in the store, when more gets there, and what may be answered before it does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from enum import Enum

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.sessions.core import Core
from cellar_server.sessions.directory import shown
from cellar_server.sessions.messages import AnswerReply, RowsRefused
from cellar_server.sessions.states import States
from cellar_server.sessions.table import slots_of
from cellar_server.store.base import End, Entry, Store, StoreError

log = logging.getLogger("cellar_server.durability")

# Seconds until a store that failed is tried again, and to what that doubles; callers are told to wait the first.
RETRY_S, MAX_RETRY_S = 0.1, 2.0
# Seconds for which an end is remembered at least, and a session beyond its limits: to tell what became of it.
TELL_S = 3600.0
# Ends that wait for a store that fails; the oldest are forgotten.
MAX_ENDS = 100_000


class Level(Enum):
    """none: never; interval: every so many seconds; step: before a chunk is answered."""

    NONE = "none"
    INTERVAL = "interval"
    STEP = "step"


class Durability:
    """Writes sessions that changed, grouped: row, tail, position and stored answers of each in one transaction. Ends
    are written at once, whatever the level: what was closed stays closed."""

    def __init__(
        self,
        core: Core,
        states: States,
        store: Store | None,
        level: Level,
        interval_s: float,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.core = core
        self.states = states
        self.store = None if level is Level.NONE else store
        self.wall = wall
        self._level = level
        self._interval_s = interval_s
        self._changed: set[int] = set()
        self._ends: dict[str, End] = {}
        self._unstored_since = 0.0  # the oldest change that may not be in the store
        self._next_s = 0.0
        self._retry_s = 0.0  # 0: the last write went well
        self._term = self.store.term if self.store is not None else 0
        # sessions that another server has claimed: answered with LEASE_LOST until they are ended here
        self.lost: set[int] = set()

    @property
    def is_on(self) -> bool:
        return self.store is not None

    @property
    def is_behind(self) -> bool:
        """Sessions are stored some time after they changed."""
        return self._level is Level.INTERVAL

    @property
    def is_failing(self) -> bool:
        """The store has failed, and it is not yet time to try it again."""
        return self._retry_s > 0 and self.core.clock() < self._next_s

    @property
    def wake_at(self) -> float:
        """When something is to be written, on the engine's clock; inf for nothing."""
        return self._next_s if self._changed or self._ends else float("inf")

    @property
    def lag_s(self) -> float:
        """Age of the oldest change that is not in the store; any thread may ask."""
        return self.core.clock() - self._unstored_since if self._changed or self._ends else 0.0

    @property
    def num_unstored(self) -> int:
        """Sessions, and ends of sessions, that are not in the store as they stand; any thread may ask."""
        return len(self._changed) + len(self._ends)

    def check_held(self) -> None:
        """CellarError LEASE_LOST where another server may have the sessions of this one."""
        if self.store is None:
            return
        if self.store.is_held and self.store.term != self._term:
            self._check()
        if not self._is_held:
            raise _not_held()

    @property
    def _is_held(self) -> bool:
        """The lease is there, and since it was lost last the claims were checked."""
        return self.store is None or (self.store.is_held and self.store.term == self._term)

    def check_slot(self, slot: int) -> None:
        """The same for one session that is here: CellarError LEASE_LOST where another server has it."""
        self.check_held()
        if slot in self.lost:
            raise lost(self.core.table.id_of(slot))

    def change(self, slots: np.ndarray) -> None:
        """Sessions [n] are not in the store as they stand."""
        if self.store is not None:
            self._note_change()
            self._changed.update(slots.tolist())

    def _note_change(self) -> None:
        if not self._changed and not self._ends:
            self._unstored_since = self.core.clock()

    def drop(self, slot: int) -> None:
        """A session goes from here, and stays in the store as it was written last."""
        self._changed.discard(slot)
        self.lost.discard(slot)

    def end(self, slot: int, error: CellarError, token: bytes = b"", receipt: bytes = b"") -> None:
        """A session is over: it goes from the store, which remembers why. token, receipt: as in End."""
        self.drop(slot)
        if self.store is not None:
            id = self.core.table.id_of(slot)
            self.end_stored(id, self.store.fence_of(id), error, token, receipt, float(self.core.table.max_idle[slot]))

    def end_stored(
        self, id: str, fence: int, error: CellarError, token: bytes = b"", receipt: bytes = b"", idle_s: float = 0.0
    ) -> None:
        """The same for a claimed session that is in the store alone."""
        self._note_change()
        said = CellarError(error.reason, error.message).to_proto().SerializeToString()
        if len(self._ends) >= MAX_ENDS:  # a store that fails for long
            self._ends.pop(next(iter(self._ends)))
        self._ends[id] = End(id, said, token, receipt, self.wall(), max(TELL_S, idle_s), fence)

    # -- once a cycle --------------------------------------------------------------------------------------------

    def persist(self, *, is_last: bool = False) -> None:
        """Writes what is due, and says in the replies that wait what is durable. Under `step` an answer that is not in
        the store becomes an error that may be sent again: the chunk was taken in, and a repetition gets its answer."""
        if self.store is None:
            return
        now = self.core.clock()
        if self.store.term != self._term:
            self._check()
        is_due = is_last or now >= self._next_s or (self._level is Level.STEP and not self._retry_s)
        if self._changed or self._ends:
            if is_due:
                self.flush(self._changed)
            elif self._ends and not self._retry_s:
                self.flush(())
        self._stamp()

    def flush(self, slots: Iterable[int]) -> bool:
        """Writes sessions, and all ends, now; whether that went well."""
        assert self.store is not None
        table, now = self.core.table, self.core.clock()
        chosen = sorted(slots)
        entries = {slot: self._entry(slot) for slot in chosen}
        if self.store.is_shared:
            self.lost.update(slot for slot, entry in entries.items() if not entry.fence)
            entries = {slot: entry for slot, entry in entries.items() if entry.fence}
        ids = {entry.id for entry in entries.values()}
        ends = [end for id, end in self._ends.items() if id not in ids]
        try:
            refused = set(self.store.write(list(entries.values()), ends)) if entries or ends else set()
        except StoreError as error:
            if not self._retry_s:
                what = "sessions of %s cannot be stored: %s"
                log.error(what, self.core.model.manifest.name, error, extra=self.core.about())
            self.core.counts.store_failures += 1
            self._retry_s = min(2 * self._retry_s, MAX_RETRY_S) or RETRY_S
            self._next_s = now + self._retry_s
            return False
        if self._retry_s:
            log.info("sessions of %s are stored again", self.core.model.manifest.name, extra=self.core.about())
        self.core.counts.stored_sessions += len(entries) + len(ends)
        self._retry_s = 0.0
        if chosen:
            self._next_s = now + self._interval_s
        self.lost.update(slot for slot, entry in entries.items() if entry.id in refused)
        written = [slot for slot in entries if slot not in self.lost]
        table.durable[written] = table.position[written]
        self._changed.difference_update(chosen)
        self._ends.clear()
        return True

    def _entry(self, slot: int) -> Entry:
        table, manifest, now = self.core.table, self.core.model.manifest, self.core.clock()
        assert self.store is not None
        id = table.id_of(slot)
        left_s = float(table.max_idle[slot]) - (now - float(table.last_use[slot]))
        if table.max_age[slot]:
            left_s = min(left_s, float(table.max_age[slot]) - (now - float(table.opened[slot])))
        return Entry(
            id,
            manifest.name,
            manifest.version,
            table.tokens.get(slot, b""),
            self.states.write(slot, is_described=False).SerializeToString(),
            self.wall(),
            max(0.0, left_s) + TELL_S,
            self.store.fence_of(id),
        )

    def _check(self) -> None:
        """The lease was lost for a time: what others claimed meanwhile is lost, what is not stored is written again."""
        assert self.store is not None
        table = self.core.table
        slots = np.flatnonzero(table.is_open[: table.num_touched]).tolist()
        slot_by_id = {table.id_of(slot): slot for slot in slots}
        term = self.store.term
        try:
            lost, missing = self.store.check(list(slot_by_id))
        except StoreError:
            return  # the next cycle tries again; until then nothing is answered
        self._term = term
        self.lost.update(slot_by_id[id] for id in lost)
        gone = [slot_by_id[id] for id in missing]
        self._note_change()
        table.durable[gone] = 0
        self._changed.update(gone)
        log.warning(
            "model %s: the lease had run out; of %d sessions %d are with another server now, %d were not in the store",
            self.core.model.manifest.name,
            len(slots),
            len(lost),
            len(gone),
            extra=self.core.about(),
        )

    def _stamp(self) -> None:
        assert self.store is not None
        table = self.core.table
        is_held = self._is_held
        for reply in self.core.replies:
            if isinstance(reply, RowsRefused):
                reply.durable = table.durable[slots_of(reply.handles)]
            if not isinstance(reply, AnswerReply):
                continue
            slots = slots_of(np.asarray(reply.handles, np.uint64)).tolist()
            reply.durable = table.durable[slots].tolist()
            failed = {row for row, _ in reply.errors}
            if not is_held or not self.lost.isdisjoint(slots):
                late = [i for i, slot in enumerate(slots) if i not in failed and (not is_held or slot in self.lost)]
                self._withhold(reply, late, _not_held())
            elif self._level is Level.STEP and not self._changed.isdisjoint(slots):
                late = [i for i, slot in enumerate(slots) if i not in failed and slot in self._changed]
                self._withhold(reply, late, _not_stored())

    def _withhold(self, reply: AnswerReply, rows: list[int], error: CellarError) -> None:
        if rows:
            self.core.counts.refuse(error.reason, len(rows))
            _withhold(reply, rows, error)

    def close(self) -> None:
        """Writes what is left."""
        if self.store is not None:
            self.persist(is_last=True)


def lost(id: str) -> CellarError:
    """What a session that another server claimed answers."""
    return CellarError(Reason.LEASE_LOST, f"session {shown(id)!r} is with another server now", retry_after_ms=50)


def _not_held() -> CellarError:
    return CellarError(
        Reason.LEASE_LOST, "this server cannot know that it still holds the session", retry_after_ms=int(1000 * RETRY_S)
    )


def _not_stored() -> CellarError:
    return CellarError(
        Reason.STORE_FAILED,
        "the chunk was taken in and is not stored yet: send it again for its answer",
        retry_after_ms=int(1000 * RETRY_S),
    )


def _withhold(reply: AnswerReply, rows: list[int], error: CellarError) -> None:
    """Answers of rows become errors."""
    away = set(rows)
    ends = np.cumsum(reply.lengths)
    pieces = [reply.outputs[ends[i] - n : ends[i]] for i, n in enumerate(reply.lengths) if i not in away]
    reply.outputs = np.concatenate(pieces) if pieces else reply.outputs[:0]
    reply.lengths = [0 if i in away else n for i, n in enumerate(reply.lengths)]
    reply.errors = sorted([*reply.errors, *((row, error) for row in rows)], key=lambda pair: pair[0])
