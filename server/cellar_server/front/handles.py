"""The sessions that a stream has handles of: opened, taken up and closed there."""

from __future__ import annotations

from cellar_proto.v1.inference_pb2 import ClosedSessions, CloseSessions, OpenedSessions, OpenSessions
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.asking import ask
from cellar_server.front.callers import Caller
from cellar_server.front.messages import row_errors
from cellar_server.front.registry import Registry
from cellar_server.sessions.directory import mint, scoped, shown
from cellar_server.sessions.infos import Opened
from cellar_server.sessions.table import engine_of


class Handles:
    """Handles are issued to one stream, and void elsewhere. engines: whose handles are good here, by their number."""

    def __init__(self, registry: Registry, number: int, scope: str, turn: int) -> None:
        self._registry = registry
        self._number = number
        self._scope = scope
        self._turn = turn
        self.engines: dict[int, Engine] = {}

    async def open(self, message: OpenSessions, caller: Caller) -> tuple[Engine, OpenedSessions]:
        """Opens sessions or takes them up: their engine, whose handles are good here once it is among `engines`, and
        what is to be answered. CellarError where none of them can be tried."""
        registry = self._registry
        caller.must_call(message.model)
        find = registry.find if message.resume else registry.find_for_new
        engine = find(message.model, message.version)
        options = message.options
        # where several servers open sessions, or callers have scopes, minted ids are treated as named ones
        is_minted_here = registry.holding.can_hold_more or self._scope
        ids = [scoped(self._scope, id) for id in message.ids]
        if not ids and is_minted_here and message.count <= registry.config.max_sessions:
            ids = [self._scope + mint() for _ in range(message.count)]
        errors = await (registry.holding.take_up if message.resume else registry.holding.reserve)(ids)
        found = [id for id in ids if id not in errors]
        opened: list[Opened | CellarError] = []
        if found or not ids:
            opened = await ask(
                engine,
                lambda sessions: sessions.open(
                    found,
                    count=0 if errors else message.count,
                    resume=message.resume,
                    stream=self._number,
                    caller=self._turn,
                    max_idle_s=options.max_idle_s,
                    max_age_s=options.max_age_s,
                    grace_s=options.disconnect_grace_s if options.HasField("disconnect_grace_s") else None,
                    token=message.request_token,
                ),
            )
        if not message.resume and any(isinstance(each, CellarError) for each in opened):
            await registry.holding.settle(found)
        if errors:
            rest = iter(opened)
            opened = [errors[id] if id in errors else next(rest) for id in ids]
        good: list[Opened | None] = [each if isinstance(each, Opened) else None for each in opened]
        ids = list(message.ids) or [shown(each.id) if each else "" for each in good]
        reply = OpenedSessions(
            frame_id=message.frame_id,
            ids=ids,
            handles=[each.handle if each else 0 for each in good],
            positions=[each.position if each else 0 for each in good],
            errors=row_errors([(i, each) for i, each in enumerate(opened) if isinstance(each, CellarError)]),
            version=engine.version,
        )
        return engine, reply

    def ends(self, message: OpenSessions, error: CellarError) -> OpenedSessions | None:
        """Why each session ended that was to be taken up, where their model is no more; None where that is not why
        `open` raised the error."""
        if not message.resume or error.reason != Reason.MODEL_NOT_FOUND:
            return None
        errors = dict(enumerate([error] * len(message.ids)))
        for i, id in enumerate(message.ids):
            try:
                self._registry.directory.engine_of(scoped(self._scope, id))
            except CellarError as end:
                errors[i] = error if end.reason == Reason.SESSION_NOT_FOUND else end
        if all(each is error for each in errors.values()):
            return None
        nothing = [0] * len(message.ids)
        reply = OpenedSessions(frame_id=message.frame_id, ids=message.ids, handles=nothing, positions=nothing)
        reply.errors.extend(row_errors(list(errors.items())))
        return reply

    async def close(self, message: CloseSessions) -> ClosedSessions:
        """Ends sessions by their handles; what is to be answered. CellarError where an engine is no more."""
        handles = list(message.handles)
        results: list[tuple[int, CellarError | None]] = [
            (0, CellarError(Reason.STALE_HANDLE, "this handle was not issued to this stream by this process"))
        ] * len(handles)
        for number, engine in self.engines.items():
            mine = [i for i, handle in enumerate(handles) if engine_of(handle) == number]
            if mine:
                chosen = [handles[i] for i in mine]
                found = await ask(engine, lambda sessions, c=chosen: sessions.close_handles(self._number, c))  # type: ignore[misc]
                for i, result in zip(mine, found, strict=True):
                    results[i] = result
        errors = [(i, error) for i, (_, error) in enumerate(results) if error is not None]
        return ClosedSessions(
            frame_id=message.frame_id,
            handles=handles,
            positions=[position for position, _ in results],
            errors=row_errors(errors),
        )
