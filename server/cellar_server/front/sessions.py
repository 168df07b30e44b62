"""Sessions: open, get, list, close, fork, export, import."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from cellar_proto.v1 import sessions_pb2_grpc
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.sessions_pb2 import (
    CloseSessionRequest,
    ExportSessionRequest,
    ForkSessionRequest,
    GetSessionRequest,
    ImportSessionRequest,
    ListSessionsRequest,
    ListSessionsResponse,
    OpenSessionRequest,
    Session,
)
from cellar_proto.v1.state_pb2 import SessionState

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.asking import ask
from cellar_server.front.callers import Caller
from cellar_server.front.rations import number_of
from cellar_server.front.registry import Registry
from cellar_server.front.status import abort
from cellar_server.sessions.directory import SCOPE_END, check_id, mint
from cellar_server.sessions.infos import SessionInfo

MAX_PAGE = 1000


class SessionsFront(sessions_pb2_grpc.SessionsServicer):
    """See sessions.proto."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    async def OpenSession(self, request: OpenSessionRequest, context: grpc.aio.ServicerContext) -> Session:
        options = request.options
        try:
            caller = self.registry.callers.of(context)
            caller.must_call(request.model)
            id = _new_id(request.id, caller)
            engine = self.registry.find_for_new(request.model, request.version)

            def open_one(sessions: Any) -> SessionInfo:
                opened = sessions.open(
                    [id],
                    caller=number_of(caller.scope, context),
                    max_idle_s=options.max_idle_s,
                    max_age_s=options.max_age_s,
                    grace_s=options.disconnect_grace_s if options.HasField("disconnect_grace_s") else None,
                    token=request.request_token,
                )[0]
                if isinstance(opened, CellarError):
                    raise opened
                return sessions.get(id)

            return await self._make(engine, id, open_one)
        except CellarError as error:
            await abort(context, error)

    async def GetSession(self, request: GetSessionRequest, context: grpc.aio.ServicerContext) -> Session:
        try:
            id = self.registry.callers.id_of(context, request.id)
            engine = await self.registry.holding.engine_of(id)
            return await self._ask(engine, lambda sessions: sessions.get(id))
        except CellarError as error:
            await abort(context, error)

    async def ListSessions(
        self, request: ListSessionsRequest, context: grpc.aio.ServicerContext
    ) -> ListSessionsResponse:
        directory = self.registry.directory
        model = request.model or None
        try:
            caller = self.registry.callers.of(context)
            scope: str | None = caller.scope
            if request.all_callers:
                caller.must_see_all()
                scope = None
            if request.page_size > MAX_PAGE:
                raise CellarError(Reason.TOO_LARGE, f"a page holds {MAX_PAGE} sessions at most")
            if model is not None:
                self.registry.find(model)
            size = request.page_size or 100
            found = directory.ids(request.page_token, size + 1, model, scope)
            listed = await asyncio.gather(
                *(self._listed(engine, (scope or "") + id, scope is None) for id, engine in found[:size]),
                return_exceptions=True,
            )
        except CellarError as error:
            await abort(context, error)
        return ListSessionsResponse(
            # one that ended while the page was made is left out
            sessions=[each for each in listed if isinstance(each, Session)],
            next_page_token=found[size - 1][0] if len(found) > size else "",
            total=directory.count(model, scope),
        )

    async def CloseSession(self, request: CloseSessionRequest, context: grpc.aio.ServicerContext) -> Session:
        directory = self.registry.directory
        try:
            id = self.registry.callers.id_of(context, request.id)
            engine = None if directory.has(id) else directory.engine_that_closed(id)
            if engine is None:
                receipt = await self.registry.holding.receipt(id, request.request_token)
                if receipt is not None:
                    return receipt
                engine = await self.registry.holding.engine_of(id)
            return await self._ask(engine, lambda sessions: sessions.close(id, request.request_token))
        except CellarError as error:
            await abort(context, error)

    async def ForkSession(self, request: ForkSessionRequest, context: grpc.aio.ServicerContext) -> Session:
        options = request.options
        try:
            caller = self.registry.callers.of(context)
            id, new_id = caller.id_of(request.id), _new_id(request.new_id, caller)
            engine = await self.registry.holding.engine_of(id)
            caller.must_call(engine.name)
            return await self._make(
                engine,
                new_id,
                lambda sessions: sessions.fork(
                    id,
                    new_id,
                    max_idle_s=options.max_idle_s,
                    max_age_s=options.max_age_s,
                    token=request.request_token,
                ),
            )
        except CellarError as error:
            await abort(context, error)

    async def ExportSession(self, request: ExportSessionRequest, context: grpc.aio.ServicerContext) -> SessionState:
        try:
            id = self.registry.callers.id_of(context, request.id)
            engine = await self.registry.holding.engine_of(id)
            return await ask(engine, lambda sessions: sessions.export(id))
        except CellarError as error:
            await abort(context, error)

    async def ImportSession(self, request: ImportSessionRequest, context: grpc.aio.ServicerContext) -> Session:
        state = request.state
        try:
            caller = self.registry.callers.of(context)
            caller.must_call(state.model)
            if not state.version:
                raise CellarError(Reason.STATE_INCOMPATIBLE, "the state names no model version")
            id = _new_id(request.id, caller)
            engine = self.registry.find_for_new(state.model, state.version)
            return await self._make(
                engine, id, lambda sessions: sessions.import_state(state, id, token=request.request_token)
            )
        except CellarError as error:
            await abort(context, error)

    async def _make(self, engine: Engine, id: str, function: Callable[[Any], SessionInfo]) -> Session:
        """A new session under an id that no other server may take meanwhile."""
        holding = self.registry.holding
        errors = await holding.reserve([id])
        if id in errors:
            raise errors[id]
        try:
            return await self._ask(engine, function)
        except CellarError:
            await holding.settle([id])
            raise

    async def _listed(self, engine: Engine, id: str, names_caller: bool) -> Session:
        session = await self._ask(engine, lambda sessions: sessions.get(id))
        if names_caller:
            session.caller = id.rpartition(SCOPE_END)[0]
        return session

    async def _ask(self, engine: Engine, function: Callable[[Any], SessionInfo]) -> Session:
        found: SessionInfo = await ask(engine, function)
        return found.to_proto(engine.manifest)


def _new_id(id: str, caller: Caller) -> str:
    """The id under which a new session is kept; minted where the caller names none."""
    new_id = caller.id_of(id or mint())
    check_id(new_id)
    return new_id
