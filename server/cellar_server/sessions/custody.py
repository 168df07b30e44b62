"""Which sessions are here: taken up from the store, put away to make room, given to another server."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.state_pb2 import SessionState
from google.protobuf.message import DecodeError

from cellar_server.errors import CellarError
from cellar_server.sessions.core import Core
from cellar_server.sessions.directory import key_of, shown
from cellar_server.sessions.durability import Durability
from cellar_server.store.base import Entry

log = logging.getLogger("cellar_server.sessions")

# One part in so many of the table is put away at a time: to find the least recently used looks at all of it.
SPILL_PART = 64


class Custody:
    """Moves sessions between this table and the store. Nothing leaves the table before it is written."""

    def __init__(self, core: Core, durability: Durability) -> None:
        self.core = core
        self.durability = durability
        # asked for by another server: they take nothing more in and go when their last chunk is answered
        self.departing: set[int] = set()

    def restore(self) -> int:
        """Takes up what the store holds of this model and no other server could want; how many. StoreError."""
        store, manifest = self.durability.store, self.core.model.manifest
        if store is None:
            return 0
        count = 0
        for entry in store.read(manifest.name, manifest.version):
            if not self.core.table.has_room:
                what = "model %s: the table is full, further stored sessions wait in the store"
                log.warning(what, manifest.name, extra=self.core.about())
                store.release([entry.id])
                break
            count += self.adopt(entry) is None
        return count

    def adopt(self, entry: Entry) -> CellarError | None:
        """Takes up a claimed session; or why not: what is over its limits is ended as expired, what does not fit the
        model any more stays in the store."""
        core, store, name = self.core, self.durability.store, self.core.model.manifest.name
        assert store is not None
        id, key = shown(entry.id), key_of(entry.id)
        if core.directory.has(entry.id):
            return None  # somebody else asked for it at the same time
        if store.fence_of(entry.id) != entry.fence:
            return CellarError(Reason.LEASE_LOST, f"session {id!r} is on its way to another server", retry_after_ms=50)
        try:
            state = SessionState.FromString(entry.state)
            self.durability.states.check(state)
        except (CellarError, DecodeError) as error:
            log.error("stored session %s of %s is not taken up: %s", id, name, error, extra=core.about(entry.id))
            store.release([entry.id])
            return error if isinstance(error, CellarError) else CellarError(Reason.STATE_INCOMPATIBLE, "it is torn")
        passed_s = max(0.0, self.durability.wall() - entry.written_s)
        state.idle_s += passed_s
        state.age_s += passed_s
        if state.idle_s >= state.max_idle_s or (state.max_age_s and state.age_s >= state.max_age_s):
            what = f"it was idle for {state.idle_s:.1f} s in the store, its limit is {state.max_idle_s:g} s"
            if state.idle_s < state.max_idle_s:
                what = f"it was open for {state.age_s:.1f} s, its limit is {state.max_age_s:g} s"
            expired = CellarError(Reason.SESSION_EXPIRED, f"session {id!r} has expired: {what}")
            log.info("session %s of %s expired: %s", id, name, what, extra=core.about(entry.id))
            core.counts.end(expired.reason)
            core.directory.release(key, expired)
            self.durability.end_stored(entry.id, entry.fence, expired)
            return expired
        try:
            slot = core.open_slot(key, state.max_idle_s, state.max_age_s, is_new=False)
        except CellarError as error:
            store.release([entry.id])
            return error
        core.counts.sessions_opened -= 1
        core.counts.sessions_taken_up += 1
        self.durability.states.read(state, slot)
        if entry.token:
            core.table.tokens[slot] = entry.token
        core.table.durable[slot] = state.position
        core.table.leave(slot, core.clock())  # its stream ended with the server that held it
        return None

    def put_away(self, slots: Iterable[int]) -> list[int]:
        """Writes sessions without chunks in flight and lets go of them in the store; those that the caller may now
        end here."""
        durability, table = self.durability, self.core.table
        store = durability.store
        assert store is not None
        chosen = list(slots)
        if not chosen or durability.is_failing:
            return []
        if not durability.flush(chosen):
            durability.change(np.array(chosen))  # so that it is tried again
            return []
        gone = [slot for slot in chosen if slot not in durability.lost]
        store.release([table.id_of(slot) for slot in gone])
        return gone

    def least_recent(self, keep: int) -> list[int]:
        """Who makes room: a part of the sessions without chunks in flight, the least recently used ones, not `keep`."""
        table = self.core.table
        slots = np.flatnonzero(table.is_open[: table.num_touched] & (table.in_flight[: table.num_touched] == 0))
        slots = slots[slots != keep]
        count = min(len(slots), max(1, table.capacity // SPILL_PART))
        if not count:
            return []
        order = np.argpartition(table.last_use[slots], count - 1)[:count]
        return slots[order].tolist()
