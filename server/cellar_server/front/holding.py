"""Sessions by their ids: those that are here, and those that the store has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from cellar_proto.v1.reason_pb2 import Error, Reason
from cellar_proto.v1.sessions_pb2 import Session

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.asking import ask
from cellar_server.log import about
from cellar_server.sessions.directory import Directory, owner, shown
from cellar_server.store.base import End, Entry, Held, Known, Store, StoreError

log = logging.getLogger("cellar_server.front")

# Seconds that a request waits for another server to let go of a session, and the first pause between two looks.
HANDOVER_S, PAUSE_S = 1.0, 0.005
# Ids in one question to the store.
MANY = 1000


class Holding:
    """Finds the engine that holds a session, and has sessions of the store taken up first."""

    def __init__(self, directory: Directory, engines: dict[tuple[str, int], Engine]) -> None:
        self.directory = directory
        self.engines = engines
        self.store: Store | None = None
        self.can_hold_more = False  # the store may hold open sessions that are not here

    async def engine_of(self, id: str) -> Engine:
        """The engine that holds a session; CellarError SESSION_NOT_FOUND, SESSION_EXPIRED, SESSION_CLOSED, LEASE_LOST,
        STORE_FAILED."""
        try:
            return self.directory.engine_of(id)
        except CellarError:
            if self.store is None:
                raise
        errors = await self.take_up([id])
        if id in errors:
            raise errors[id]
        return self.directory.engine_of(id)

    async def take_up(self, ids: Sequence[str]) -> dict[str, CellarError]:
        """Has those of the sessions taken up here that are not; why not, of those that cannot be. Ids that nobody knows
        have no entry."""
        return await self._claim(ids, reserves=False)

    async def reserve(self, ids: Sequence[str]) -> dict[str, CellarError]:
        """Makes sure that sessions can be opened under these ids, where other servers might do the same."""
        if not self.can_hold_more:
            return {}
        errors = await self._claim(ids, reserves=True)
        # one that ended may be opened again
        return {id: error for id, error in errors.items() if error.reason not in _OVER}

    async def settle(self, ids: Sequence[str]) -> None:
        """Gives back what was reserved and not opened."""
        unused = [id for id in ids if not self.directory.has(id)] if self.can_hold_more else []
        if unused:
            await asyncio.get_running_loop().run_in_executor(None, self._let_go, unused)

    async def receipt(self, id: str, token: bytes) -> Session | None:
        """The answer to the close of this token that ended a session, where only the store remembers it."""
        if self.store is None or not token or self.directory.has(id):
            return None
        end = (await self._ask([id], reserves=False)).get(id)
        return Session.FromString(end.receipt) if isinstance(end, End) and end.token == token else None

    async def _claim(self, ids: Sequence[str], *, reserves: bool) -> dict[str, CellarError]:
        errors: dict[str, CellarError] = {}
        if self.store is None:
            return errors
        missing = [id for id in ids if not self.directory.has(id)]
        pause_s, waited_s = PAUSE_S, 0.0
        while missing:
            held: list[str] = []
            for at in range(0, len(missing), MANY):
                some = missing[at : at + MANY]
                try:
                    known = await self._ask(some, reserves=reserves)
                except CellarError as error:
                    return errors | dict.fromkeys(missing, error)
                held += [id for id, each in known.items() if isinstance(each, Held)]
                errors |= await self._adopt(known)
            if held and waited_s >= HANDOVER_S:
                what = "another server holds the session and has not let go of it yet"
                return errors | dict.fromkeys(held, CellarError(Reason.LEASE_LOST, what, retry_after_ms=100))
            missing = held
            if missing:
                await asyncio.sleep(pause_s)
                waited_s += pause_s
                pause_s = min(2 * pause_s, 0.1)
        return errors

    async def _ask(self, ids: list[str], *, reserves: bool) -> dict[str, Known]:
        store = self.store
        assert store is not None
        if not store.is_held:
            raise CellarError(Reason.LEASE_LOST, "this server has lost its lease", retry_after_ms=100)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(None, lambda: store.claim(ids, reserves=reserves))
        except StoreError as error:
            log.error("the store cannot be asked for sessions: %s", error)
            raise CellarError(
                Reason.STORE_FAILED, "the store cannot be asked for the session", retry_after_ms=100
            ) from None

    async def _adopt(self, known: dict[str, Known]) -> dict[str, CellarError]:
        errors: dict[str, CellarError] = {}
        by_engine: dict[tuple[str, int], list[Entry]] = {}
        for id, each in known.items():
            if isinstance(each, Entry):
                by_engine.setdefault((each.model, each.version), []).append(each)
            elif isinstance(each, End):
                error = Error.FromString(each.error)
                errors[id] = CellarError(error.reason, error.message)
        for key, entries in by_engine.items():
            ids = [entry.id for entry in entries]
            engine = self.engines.get(key)
            try:
                if engine is None:
                    what = f"session {shown(ids[0])!r} is one of model {key[0]!r} version {key[1]}, which is not served"
                    raise CellarError(Reason.MODEL_NOT_FOUND, what)
                errors |= await ask(engine, lambda sessions, some=entries: sessions.adopt(some))  # type: ignore[misc]
            except CellarError as error:
                errors |= dict.fromkeys(ids, error)
                self._let_go(ids)
        return errors

    def wanted(self, id: str) -> None:
        """Another server asks for a session: it gets it as soon as it is idle here. From any thread."""
        if not self.directory.has(id):
            self._let_go([id])
            return
        try:
            engine = self.directory.engine_of(id)
        except CellarError:
            return
        asyncio.run_coroutine_threadsafe(_hand_over(engine, id), self.loop)

    def start(self, store: Store, *, can_hold_more: bool) -> None:
        """Begins to take sessions up from a store. Called on the event loop."""
        self.loop = asyncio.get_running_loop()
        self.store = store
        self.can_hold_more = can_hold_more or store.is_shared
        store.start(self.wanted)

    def _let_go(self, ids: list[str]) -> None:
        assert self.store is not None
        try:
            self.store.release(ids)
        except StoreError as error:
            log.error("claims could not be given back: %s", error)


_OVER = (Reason.SESSION_CLOSED, Reason.SESSION_EXPIRED)


async def _hand_over(engine: Engine, id: str) -> None:
    try:
        await ask(engine, lambda sessions: sessions.hand_over(id))
    except CellarError as error:
        extra = about(session=shown(id), caller=owner(id))
        log.debug("session %s was asked for and is not here: %s", shown(id), error.message, extra=extra)
