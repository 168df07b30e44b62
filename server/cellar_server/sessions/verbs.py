"""The verbs on one model's sessions: open, get, fork, export, import, and close (see Ends)."""

from __future__ import annotations

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.state_pb2 import SessionState

from cellar_server.errors import CellarError
from cellar_server.sessions.core import Core
from cellar_server.sessions.directory import check_id, key_of, mint, shown
from cellar_server.sessions.durability import Durability
from cellar_server.sessions.ends import Ends
from cellar_server.sessions.frames import Frames
from cellar_server.sessions.generations import Generations
from cellar_server.sessions.infos import Opened, SessionInfo
from cellar_server.sessions.states import States


class Verbs(Ends):
    """What may be done to sessions by their ids. Only their engine's thread may call it, between two runs."""

    def __init__(
        self, core: Core, frames: Frames, generations: Generations, states: States, durability: Durability
    ) -> None:
        super().__init__(core, frames, generations, durability)
        self.states = states

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
