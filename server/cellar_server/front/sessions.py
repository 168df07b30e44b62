"""Sessions: open, get, list, close, fork."""

from __future__ import annotations

import asyncio
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
from cellar_server.front.registry import Registry
from cellar_server.front.status import abort
from cellar_server.sessions.sessions import SessionInfo

MAX_PAGE = 1000


def _message(engine: Engine, info: SessionInfo) -> Session:
    return Session(
        id=info.id,
        model=engine.name,
        version=engine.version,
        position=info.position,
        age_s=info.age_s,
        idle_s=info.idle_s,
        max_idle_s=info.max_idle_s,
        max_age_s=info.max_age_s,
        durable_position=info.durable_position,
    )


class SessionsFront(sessions_pb2_grpc.SessionsServicer):
    """See sessions.proto."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    async def OpenSession(self, request: OpenSessionRequest, context: grpc.aio.ServicerContext) -> Session:
        options = request.options

        def open_one(sessions: Any) -> SessionInfo:
            ids = [request.id] if request.id else []
            opened = sessions.open(
                ids,
                count=1,
                max_idle_s=options.max_idle_s,
                max_age_s=options.max_age_s,
                grace_s=options.disconnect_grace_s if options.HasField("disconnect_grace_s") else None,
                token=request.request_token,
            )[0]
            if isinstance(opened, CellarError):
                raise opened
            return sessions.get(opened.id)

        try:
            engine = self.registry.find(request.model, request.version)
            return _message(engine, await ask(engine, open_one))
        except CellarError as error:
            await abort(context, error)

    async def GetSession(self, request: GetSessionRequest, context: grpc.aio.ServicerContext) -> Session:
        try:
            engine = self.registry.directory.engine_of(request.id)
            return _message(engine, await ask(engine, lambda sessions: sessions.get(request.id)))
        except CellarError as error:
            await abort(context, error)

    async def ListSessions(
        self, request: ListSessionsRequest, context: grpc.aio.ServicerContext
    ) -> ListSessionsResponse:
        directory = self.registry.directory
        model = request.model or None
        try:
            if request.page_size > MAX_PAGE:
                raise CellarError(Reason.TOO_LARGE, f"a page holds {MAX_PAGE} sessions at most")
            if model is not None:
                self.registry.find(model)
            size = request.page_size or 100
            found = directory.ids(request.page_token, size + 1, model)
            listed = await asyncio.gather(
                *(ask(engine, lambda sessions, id=id: sessions.get(id)) for id, engine in found[:size]),
                return_exceptions=True,
            )
        except CellarError as error:
            await abort(context, error)
        return ListSessionsResponse(
            # one that ended while the page was made is left out
            sessions=[
                _message(engine, info)
                for (_, engine), info in zip(found, listed, strict=False)
                if isinstance(info, SessionInfo)
            ],
            next_page_token=found[size - 1][0] if len(found) > size else "",
            total=directory.count(model),
        )

    async def CloseSession(self, request: CloseSessionRequest, context: grpc.aio.ServicerContext) -> Session:
        directory = self.registry.directory
        try:
            engine = (None if directory.has(request.id) else directory.engine_that_closed(request.id)) or (
                directory.engine_of(request.id)
            )
            return _message(
                engine, await ask(engine, lambda sessions: sessions.close(request.id, request.request_token))
            )
        except CellarError as error:
            await abort(context, error)

    async def ForkSession(self, request: ForkSessionRequest, context: grpc.aio.ServicerContext) -> Session:
        options = request.options
        try:
            engine = self.registry.directory.engine_of(request.id)
            info = await ask(
                engine,
                lambda sessions: sessions.fork(
                    request.id,
                    request.new_id,
                    max_idle_s=options.max_idle_s,
                    max_age_s=options.max_age_s,
                    token=request.request_token,
                ),
            )
            return _message(engine, info)
        except CellarError as error:
            await abort(context, error)

    async def ExportSession(self, request: ExportSessionRequest, context: grpc.aio.ServicerContext) -> SessionState:
        try:
            engine = self.registry.directory.engine_of(request.id)
            return await ask(engine, lambda sessions: sessions.export(request.id))
        except CellarError as error:
            await abort(context, error)

    async def ImportSession(self, request: ImportSessionRequest, context: grpc.aio.ServicerContext) -> Session:
        state = request.state
        try:
            if not state.version:
                raise CellarError(Reason.STATE_INCOMPATIBLE, "the state names no model version")
            engine = self.registry.find(state.model, state.version)
            info = await ask(
                engine, lambda sessions: sessions.import_state(state, request.id, token=request.request_token)
            )
            return _message(engine, info)
        except CellarError as error:
            await abort(context, error)
