"""Models: list, get, load, unload."""

from __future__ import annotations

from typing import Protocol

import grpc
from cellar_proto.v1 import models_pb2_grpc
from cellar_proto.v1.manifest_pb2 import Manifest
from cellar_proto.v1.models_pb2 import (
    GetModelRequest,
    ListModelsRequest,
    ListModelsResponse,
    LoadModelRequest,
    LoadModelResponse,
    Model,
    UnloadModelRequest,
    UnloadModelResponse,
)
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.registry import Registry
from cellar_server.front.status import abort


class Host(Protocol):
    """Who loads and unloads models."""

    async def load_model(self, name: str) -> list[int]: ...

    async def unload_model(self, name: str, version: int = 0, *, wait_s: float, force_reason: str) -> int: ...


class ModelsFront(models_pb2_grpc.ModelsServicer):
    """See models.proto."""

    def __init__(self, registry: Registry, host: Host) -> None:
        self.registry = registry
        self.host = host

    def _message(self, engine: Engine) -> Model:
        return Model(manifest=engine.manifest, counters=engine.counters(), limits=self.registry.limits(engine))

    async def ListModels(self, request: ListModelsRequest, context: grpc.aio.ServicerContext) -> ListModelsResponse:
        try:
            caller = self.registry.callers.of(context)
        except CellarError as error:
            await abort(context, error)
        models = {key: self._message(engine) for key, engine in self.registry.engines.items()}
        for (name, version), why in self.registry.broken.items():
            models[name, version] = Model(manifest=Manifest(name=name, version=version), error=why.to_proto())
        known = [models[key] for key in sorted(models) if caller.may_know(key[0])]
        return ListModelsResponse(models=known, limits=self.registry.limits())

    async def GetModel(self, request: GetModelRequest, context: grpc.aio.ServicerContext) -> Model:
        try:
            self.registry.callers.of(context).must_know(request.name)
            return self._message(self.registry.find(request.name, request.version))
        except CellarError as error:
            await abort(context, error)

    async def LoadModel(self, request: LoadModelRequest, context: grpc.aio.ServicerContext) -> LoadModelResponse:
        try:
            self.registry.callers.of(context).must_administer(request.name)
            return LoadModelResponse(versions=await self.host.load_model(request.name))
        except CellarError as error:
            await abort(context, error)

    async def UnloadModel(self, request: UnloadModelRequest, context: grpc.aio.ServicerContext) -> UnloadModelResponse:
        try:
            self.registry.callers.of(context).must_administer(request.name)
            if not 0 <= request.wait_s < 1e9:
                raise CellarError(Reason.INVALID_REQUEST, "wait_s is seconds, 0 or more")
            ended = await self.host.unload_model(
                request.name, request.version, wait_s=request.wait_s, force_reason=request.force_reason
            )
            return UnloadModelResponse(sessions_ended=ended)
        except CellarError as error:
            await abort(context, error)
