"""The verbs on one model's sessions: open, get, close, fork, export, import; and how they go by themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from cellar_proto.v1.manifest_pb2 import Manifest
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.sessions_pb2 import Session
from cellar_proto.v1.state_pb2 import SessionState

from cellar_server.errors import CellarError
from cellar_server.sessions import durability as durabilities
from cellar_server.sessions.core import Core
from cellar_server.sessions.custody import Custody
from cellar_server.sessions.directory import check_id, key_of, mint, shown
from cellar_server.sessions.durability import Durability
from cellar_server.sessions.frames import Frames
from cellar_server.sessions.generations import Generations
from cellar_server.sessions.states import States
from cellar_server.store.base import Entry

log = logging.getLogger("cellar_server.sessions")

# Limits are looked at no more often than so.
REST_S = 0.05


@dataclass(frozen=True, slots=True)
class Opened:
    """A session on a stream: its handle there (0 without a stream) and how much input it has consumed."""

    id: str
    handle: int
    position: int


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a caller sees of a session; times in seconds, max_age_s 0 for none."""

    id: str
    position: int
    age_s: float
    idle_s: float
    max_idle_s: float
    max_age_s: float
    durable_position: int

    def to_proto(self, manifest: Manifest) -> Session:
        """The same as a message."""
        return Session(
            id=shown(self.id),
            model=manifest.name,
            version=manifest.version,
            position=self.position,
            age_s=self.age_s,
            idle_s=self.idle_s,
            max_idle_s=self.max_idle_s,
            max_age_s=self.max_age_s,
            durable_position=self.durable_position,
        )


class Verbs:
    """What may be done to sessions by their ids. Only their engine's thread may call it, between two runs."""

    def __init__(
        self, core: Core, frames: Frames, generations: Generations, states: States, durability: Durability
    ) -> None:
        self.core = core
        self.frames = frames
        self.generations = generations
        self.states = states
        self.durability = durability
        self.custody = Custody(core, durability)
        core.make_room = self._spill
        self._rests_until = 0.0  # limits are not looked at before

    def _slot(self, id: str) -> int:
        """CellarError SESSION_NOT_FOUND, SESSION_EXPIRED, SESSION_CLOSED, LEASE_LOST."""
        slot = self.core.directory.slot_of(id, self.core.number)
        self.durability.check_slot(slot)
        return slot

    def _chunk_slot(self, id: str) -> int:
        """As `_slot`, and UNSUPPORTED where the session is a generation, which takes no chunks."""
        slot = self._slot(id)
        if self.generations.has(slot):
            raise CellarError(Reason.UNSUPPORTED, f"session {shown(id)!r} is a generation: it takes no chunks")
        return slot

    # -- open and look -------------------------------------------------------------------------------------------

    def open(
        self,
        ids: list[str],
        *,
        count: int = 0,
        resume: bool = False,
        stream: int = 0,
        caller: int = 0,
        max_idle_s: float = 0.0,
        max_age_s: float = 0.0,
        grace_s: float | None = None,
        token: bytes = b"",
    ) -> list[Opened | CellarError]:
        """Opens sessions, or with `resume` takes up open ones; with a stream each gets a handle there. One entry for
        each id in order, or for `count` minted ones: a session, or the reason there is none."""
        core = self.core
        core.check_open()
        if not core.can_hold_sessions:
            raise CellarError(Reason.UNSUPPORTED, "the model keeps no sessions: call Predict or Generate")
        if ids and count not in (0, len(ids)):
            raise CellarError(Reason.INVALID_REQUEST, f"{len(ids)} ids, but a count of {count}")
        if not ids and not count:
            raise CellarError(Reason.EMPTY_INPUT, "the request opens no session")
        if max(count, len(ids)) > core.config.max_sessions:
            raise CellarError(Reason.TOO_LARGE, f"at most {core.config.max_sessions} sessions at a time")
        if not resume and not (token and ids and all(core.directory.has(id) for id in ids)):
            core.check_new(caller or stream)
        opened: list[Opened | CellarError] = []
        for id in ids or [mint() for _ in range(count)]:
            try:
                check_id(id)
                slot = self._take_up(id) if resume else self._open(id, max_idle_s, max_age_s, token, grace_s)
            except CellarError as error:
                core.counts.refuse(error.reason)
                opened.append(error)
                continue
            handle = core.table.issue(slot, stream) if stream else 0
            opened.append(Opened(id, handle, int(core.table.position[slot])))
        return opened

    def _take_up(self, id: str) -> int:
        slot = self._chunk_slot(id)
        self.core.table.last_use[slot] = self.core.clock()
        self.durability.change(np.array([slot]))
        return slot

    def _open(self, id: str, max_idle_s: float, max_age_s: float, token: bytes, grace_s: float | None) -> int:
        core = self.core
        if grace_s is not None and not 0 <= grace_s < 1e9:
            raise CellarError(Reason.INVALID_REQUEST, "a session's grace is seconds, 0 or more")
        made = self._made_by(id, token)
        if made is not None:
            return made
        slot = core.open_slot(key_of(id), max_idle_s, max_age_s)
        if grace_s is not None:
            core.table.graces[slot] = grace_s
        self._begin(slot, token)
        return slot

    def _made_by(self, id: str, token: bytes) -> int | None:
        """The slot of a session that a request with this token has made before."""
        self.durability.check_held()
        if token and self.core.directory.has(id):
            slot = self._slot(id)
            if self.core.table.tokens.get(slot) == token:
                return slot
        return None

    def _begin(self, slot: int, token: bytes) -> None:
        """A session was made by a request with this token."""
        if token:
            self.core.table.tokens[slot] = token
        self.durability.change(np.array([slot]))

    def get(self, id: str) -> SessionInfo:
        """One session; CellarError SESSION_NOT_FOUND, SESSION_EXPIRED, SESSION_CLOSED."""
        return self._info(self._slot(id))

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

    # -- copies --------------------------------------------------------------------------------------------------

    def export(self, id: str) -> SessionState:
        """A session as one piece; it stays as it is."""
        return self.states.write(self._slot(id))

    def import_state(self, state: SessionState, id: str = "", *, token: bytes = b"") -> SessionInfo:
        """A new session from an exported state. STATE_INCOMPATIBLE, SESSION_EXISTS, OVERLOADED."""
        core = self.core
        core.check_open()
        if core.model.manifest.is_whole_only:
            raise CellarError(Reason.UNSUPPORTED, "this model keeps no sessions")
        self.states.check(state)
        id = id or mint()
        check_id(id)
        slot = self._made_by(id, token)
        if slot is None:
            core.check_new()
            slot = core.open_slot(key_of(id), state.max_idle_s, state.max_age_s)
            self.states.read(state, slot)
            core.table.last_use[slot] = core.clock()  # it is used: now
            self._begin(slot, token)
        return self._info(slot)

    def fork(
        self, id: str, new_id: str = "", *, max_idle_s: float = 0.0, max_age_s: float = 0.0, token: bytes = b""
    ) -> SessionInfo:
        """Copies a session as it stands after its last committed chunk (a generation: emission): row, tail, position
        and stored answers."""
        core, table = self.core, self.core.table
        core.check_open()
        source = self._slot(id)
        new_id = new_id or mint()
        check_id(new_id)
        slot = self._made_by(new_id, token)
        if slot is None:
            core.check_new()
            slot = core.open_slot(
                key_of(new_id),
                max_idle_s or float(table.max_idle[source]),
                max_age_s or float(table.max_age[source]),
                keep=source,
            )
            table.state[slot] = table.state[source]
            table.position[slot] = table.accepted[slot] = table.position[source]
            if source in table.held:
                table.held[slot] = table.held[source]
            core.answers.copy(source, slot)
            self.generations.copy(source, slot)
            self._begin(slot, token)
        return self._info(slot)

    # -- ends ----------------------------------------------------------------------------------------------------

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
            slots, valid = core.table.resolve(np.array([handle], np.uint64), stream)
            if not valid[0]:
                results.append((0, core.table.why_void(handle)))
                continue
            slot = int(slots[0])
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
        info = receipt[2].to_proto(core.model.manifest).SerializeToString() if receipt is not None else b""
        self.durability.end(slot, error, receipt[1] if receipt is not None else b"", info)
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
