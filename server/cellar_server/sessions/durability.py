"""What of the sessions is in the store, and when more gets there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import Enum

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.state_pb2 import SessionState
from google.protobuf.message import DecodeError

from cellar_server.errors import CellarError
from cellar_server.sessions.core import Core
from cellar_server.sessions.directory import id_of, key_of
from cellar_server.sessions.messages import AnswerReply
from cellar_server.sessions.states import States
from cellar_server.sessions.table import slot_of
from cellar_server.store.base import Entry, Store, StoreError

log = logging.getLogger("cellar_server.durability")

# Seconds between two tries of a store that failed, and what a refused caller is told to wait.
RETRY_S = 0.1


class Level(Enum):
    """none: never; interval: every so many seconds; step: before a chunk is answered."""

    NONE = "none"
    INTERVAL = "interval"
    STEP = "step"


class Durability:
    """Writes sessions that changed, grouped: row, tail, position and stored answers of each in one transaction."""

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
        self._states = states
        self._store = None if level is Level.NONE else store
        self._level = level
        self._interval_s = interval_s
        self._wall = wall
        self._changed: set[int] = set()
        self._gone: set[str] = set()
        self._next_s = 0.0
        self._is_failing = False

    @property
    def is_on(self) -> bool:
        return self._store is not None

    @property
    def wake_at(self) -> float:
        """When something is to be written, on the engine's clock; inf for nothing."""
        return self._next_s if self._changed or self._gone else float("inf")

    def change(self, slots: np.ndarray) -> None:
        """Sessions [n] are not in the store as they stand."""
        if self._store is not None:
            self._changed.update(slots.tolist())

    def forget(self, slot: int) -> None:
        """A session ends."""
        if self._store is not None:
            self._changed.discard(slot)
            self._gone.add(id_of(self.core.table.key[slot]))

    def persist(self, *, is_last: bool = False) -> None:
        """Writes what is due, and says in the replies that wait what is durable. Under `step` an answer that is not in
        the store becomes an error that may be sent again: the chunk was taken in, and a repetition gets its answer."""
        if self._store is None:
            return
        now = self.core.clock()
        if self._changed or self._gone:
            is_due = self._level is Level.STEP and not self._is_failing
            if is_due or is_last or now >= self._next_s:
                self._flush(now)
        self._stamp()

    def _flush(self, now: float) -> None:
        assert self._store is not None
        table, manifest = self.core.table, self.core.model.manifest
        slots = sorted(self._changed)
        written_s = self._wall()
        entries = [
            Entry(
                id_of(table.key[slot]),
                manifest.name,
                manifest.version,
                table.tokens.get(slot, b""),
                self._states.write(slot, is_described=False).SerializeToString(),
                written_s,
            )
            for slot in slots
        ]
        names = {entry.id for entry in entries}
        try:
            self._store.write(entries, [id for id in self._gone if id not in names])
        except StoreError as error:
            if not self._is_failing:
                log.error("sessions of %s cannot be stored: %s", manifest.name, error)
            self._is_failing = True
            self._next_s = now + RETRY_S
            return
        if self._is_failing:
            log.info("sessions of %s are stored again", manifest.name)
        self._is_failing = False
        self._next_s = now + self._interval_s
        table.durable[slots] = table.position[slots]
        self._changed.clear()
        self._gone.clear()

    def _stamp(self) -> None:
        table = self.core.table
        for reply in self.core.replies:
            if not isinstance(reply, AnswerReply):
                continue
            slots = [slot_of(handle) for handle in reply.handles]
            reply.durable = table.durable[slots].tolist()
            if self._level is Level.STEP and not self._changed.isdisjoint(slots):
                failed = {row for row, _ in reply.errors}
                late = [row for row, slot in enumerate(slots) if slot in self._changed and row not in failed]
                self._withhold(reply, late)

    def _withhold(self, reply: AnswerReply, rows: list[int]) -> None:
        """Answers of rows that are not in the store become errors."""
        if not rows:
            return
        error = CellarError(
            Reason.STORE_FAILED,
            "the chunk was taken in and is not stored yet: send it again for its answer",
            retry_after_ms=int(1000 * RETRY_S),
        )
        ends = np.cumsum(reply.lengths)
        keep = [i for i in range(len(reply.lengths)) if i not in set(rows)]
        pieces = [reply.outputs[ends[i] - reply.lengths[i] : ends[i]] for i in keep]
        reply.outputs = np.concatenate(pieces) if pieces else reply.outputs[:0]
        reply.lengths = [0 if i in set(rows) else n for i, n in enumerate(reply.lengths)]
        reply.errors = sorted([*reply.errors, *((row, error) for row in rows)], key=lambda pair: pair[0])

    def restore(self) -> int:
        """Takes up the sessions that the store holds of this model; how many. StoreError where it cannot be read.

        What expired meanwhile is ended as expired; what does not fit the model any more is left where it is.
        """
        if self._store is None:
            return 0
        core, manifest, count = self.core, self.core.model.manifest, 0
        for entry in list(self._store.read(manifest.name, manifest.version)):
            passed_s = max(0.0, self._wall() - entry.written_s)
            try:
                state = SessionState.FromString(entry.state)
                self._states.check(state)
            except (CellarError, DecodeError) as error:
                log.error("stored session %s of %s is not taken up: %s", entry.id, manifest.name, error)
                continue
            state.idle_s += passed_s
            state.age_s += passed_s
            if state.idle_s >= state.max_idle_s or (state.max_age_s and state.age_s >= state.max_age_s):
                what = (
                    f"session {entry.id!r} has expired: it was idle for {state.idle_s:.1f} s while the server was away"
                )
                core.directory.release(key_of(entry.id), CellarError(Reason.SESSION_EXPIRED, what))
                self._gone.add(entry.id)
                continue
            try:
                slot = core.open_slot(key_of(entry.id), state.max_idle_s, state.max_age_s)
            except CellarError as error:
                log.error("stored session %s of %s is not taken up: %s", entry.id, manifest.name, error)
                continue
            core.counts.sessions_opened -= 1
            self._states.read(state, slot)
            if entry.token:
                core.table.tokens[slot] = entry.token
            core.table.durable[slot] = state.position
            count += 1
        return count

    def close(self) -> None:
        """Writes what is left and ends the connection."""
        if self._store is not None:
            self.persist(is_last=True)
            self._store.close()
            self._store = None
