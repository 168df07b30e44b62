"""How sessions go: closed by their caller, at their limits, with their model, into the store, to another server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.sessions import durability as durabilities
from cellar_server.sessions.core import Core
from cellar_server.sessions.custody import Custody
from cellar_server.sessions.directory import shown
from cellar_server.sessions.durability import Durability
from cellar_server.sessions.frames import Frames
from cellar_server.sessions.generations import Generations
from cellar_server.sessions.infos import SessionInfo
from cellar_server.store.base import Entry

log = logging.getLogger("cellar_server.sessions")

# Limits are looked at no more often than so.
REST_S = 0.05


class Ends:
    """Sessions leave the table, and what waits for them learns why. Only their engine's thread may call it, between
    two runs."""

    def __init__(self, core: Core, frames: Frames, generations: Generations, durability: Durability) -> None:
        self.core = core
        self.frames = frames
        self.generations = generations
        self.durability = durability
        self.custody = Custody(core, durability)
        core.make_room = self._spill
        self._rests_until = 0.0  # limits are not looked at before

    def _slot(self, id: str) -> int:
        """CellarError SESSION_NOT_FOUND, SESSION_EXPIRED, SESSION_CLOSED, LEASE_LOST."""
        slot = self.core.directory.slot_of(id, self.core.number)
        self.durability.check_slot(slot)
        return slot

    def _info(self, slot: int) -> SessionInfo:
        table, now = self.core.table, self.core.clock()
        return SessionInfo(
            table.id_of(slot),
            int(table.position[slot]),
            now - float(table.opened[slot]),
            now - float(table.last_use[slot]),
            float(table.max_idle[slot]),
            float(table.max_age[slot]),
            int(table.durable[slot]),
        )

    # -- closed by their caller ----------------------------------------------------------------------------------

    def close(self, id: str, token: bytes = b"") -> SessionInfo:
        """Ends a session; with the token of the close that ended it, says the same again."""
        core = self.core
        receipt = core.directory.receipt_of(id)
        if token and receipt is not None and receipt[1] == token:
            return receipt[2]
        slot = self._slot(id)
        info = self._info(slot)
        self._end(slot, closed(id), core.clock(), (core.number, token, info))
        return info

    def close_handles(self, stream: int, handles: list[int]) -> list[tuple[int, CellarError | None]]:
        """Ends sessions by their handles on a stream: the final position of each, or why not."""
        core = self.core
        self.durability.check_held()
        results: list[tuple[int, CellarError | None]] = []
        for handle in handles:
            slot = core.table.slot_of(handle, stream)
            if slot < 0:
                results.append((0, core.table.why_void(handle)))
                continue
            if slot in self.durability.lost:
                results.append((0, durabilities.lost(core.table.id_of(slot))))
                continue
            info = self._info(slot)
            self._end(slot, closed(info.id), core.clock(), (core.number, b"", info))
            results.append((info.position, None))
        return results

    def close_all(self, error: CellarError) -> int:
        """Ends every session with one reason: the model is unloaded. How many there were."""
        table, now = self.core.table, self.core.clock()
        slots = np.flatnonzero(table.is_open[: table.num_touched]).tolist()
        for slot in slots:
            self._end(slot, error, now)
        return len(slots)

    def _end(
        self, slot: int, error: CellarError, now: float, receipt: tuple[int, bytes, SessionInfo] | None = None
    ) -> None:
        """A session is over: what waits for it is answered with `error`, and so is its id from now on."""
        core = self.core
        told = b""
        if receipt is not None and self.durability.is_on:
            told = receipt[2].to_proto(core.model.manifest).SerializeToString()
        self.durability.end(slot, error, receipt[1] if receipt is not None else b"", told)
        core.counts.end(error.reason)
        self._leave(slot, error, now, receipt)

    def _leave(
        self, slot: int, error: CellarError, now: float, receipt: tuple[int, bytes, SessionInfo] | None = None
    ) -> None:
        """Takes a session out of the table: what waits for it is answered with `error`, and so are its id and handle
        from now on."""
        core, table = self.core, self.core.table
        head = int(table.head[slot])
        if head >= 0:
            rows = np.array([head])
            core.scheduler.remove(rows)
            self.frames.fail(rows, error, now)
        self.generations.close(slot, error, now)
        self.durability.drop(slot)
        self.custody.departing.discard(slot)
        core.answers.reset(slot)
        core.directory.release(table.key_of(slot), error, receipt)
        table.close(slot, error)

    @property
    def expire_at(self) -> float:
        """When to call `expire`, on the engine's clock; inf for never."""
        return max(self.core.table.expire_at, self._rests_until)

    def expire(self) -> None:
        """Closes the sessions over their limits. No run may be under way."""
        core, table = self.core, self.core.table
        now = core.clock()
        for slot in table.expired(now).tolist():
            idle, max_idle = now - float(table.last_use[slot]), float(table.max_idle[slot])
            age, max_age = now - float(table.opened[slot]), float(table.max_age[slot])
            if max_age and age >= max_age:
                what = f"it was open for {age:.1f} s, its limit is {max_age:g} s"
            elif idle >= max_idle:
                what = f"it was idle for {idle:.1f} s, its limit is {max_idle:g} s"
            else:
                what = f"its stream ended, and nobody took it up within {table.graces[slot]:g} s"
            full_id = table.id_of(slot)
            id = shown(full_id)
            error = CellarError(Reason.SESSION_EXPIRED, f"session {id!r} has expired: {what}")
            log.info("session %s of %s expired: %s", id, self._name, what, extra=core.about(full_id))
            self._end(slot, error, now)
        table.look_ahead(now)
        # to look costs 11 ns a session: at most once in a thousand times of that
        self._rests_until = now + max(REST_S, 1.1e-5 * table.num_touched)

    # -- between servers, and to the store and back --------------------------------------------------------------

    def adopt(self, entries: Sequence[Entry]) -> dict[str, CellarError]:
        """Takes up sessions that this server has claimed; why not, of those that cannot be."""
        errors: dict[str, CellarError] = {}
        for entry in entries:
            error = self.custody.adopt(entry)
            if error is not None:
                errors[entry.id] = error
        return errors

    def hand_over(self, id: str) -> None:
        """Lets go of a session that another server asks for, as soon as its chunks in flight are answered."""
        self.custody.departing.add(self._slot(id))

    @property
    def is_tending_due(self) -> bool:
        """Sessions are to end here: at their limits, or since they are elsewhere now."""
        return bool(self.durability.lost or self.custody.departing) or self.core.clock() >= self.expire_at

    def tend(self) -> None:
        """Ends here what is elsewhere now. No run may be under way."""
        core, custody, durability = self.core, self.custody, self.durability
        if not (durability.lost or custody.departing):
            return
        now = core.clock()
        for slot in list(durability.lost):
            id = core.table.id_of(slot)
            error = durabilities.lost(id)
            log.warning("session %s of %s: %s", shown(id), self._name, error.message, extra=core.about(id))
            core.counts.end(error.reason)
            self._leave(slot, error, now)
        for slot in custody.departing:
            self.generations.rest(slot, durabilities.lost(core.table.id_of(slot)), now)
        idle = [slot for slot in custody.departing if core.table.in_flight[slot] == 0]
        core.counts.sessions_handed_over += self._put_away(idle, durabilities.lost)

    def _spill(self, keep: int) -> bool:
        """Puts the least recently used sessions into the store, where that is wanted; whether there is room now."""
        core, custody = self.core, self.custody
        if core.config.when_full != "spill" or not self.durability.is_on:
            return False
        gone = self._put_away(custody.least_recent(keep), _spilled)
        core.counts.sessions_spilled += gone
        if gone:
            what = "%d sessions of %s were put into the store: the table is full"
            log.info(what, gone, self._name, extra=core.about())
        return gone > 0

    def _put_away(self, slots: list[int], why: Callable[[str], CellarError]) -> int:
        """Moves sessions into the store; how many went."""
        now, core = self.core.clock(), self.core
        gone = self.custody.put_away(slots)
        for slot in gone:
            self._leave(slot, why(core.table.id_of(slot)), now)
        return len(gone)

    @property
    def _name(self) -> str:
        return self.core.model.manifest.name


def closed(id: str) -> CellarError:
    """What the id of a session that a caller ended answers."""
    return CellarError(Reason.SESSION_CLOSED, f"session {shown(id)!r} was closed")


def _spilled(id: str) -> CellarError:
    return CellarError(
        Reason.STALE_HANDLE,
        f"session {shown(id)!r} was put into the store to make room: take it up again",
        retry_after_ms=1,
    )
