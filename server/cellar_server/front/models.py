"""Models: list and get."""

from __future__ import annotations

import grpc
from cellar_proto.v1 import models_pb2_grpc
from cellar_proto.v1.manifest_pb2 import Manifest
from cellar_proto.v1.models_pb2 import GetModelRequest, ListModelsRequest, ListModelsResponse, Model

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.registry import Registry
from cellar_server.front.status import abort


class ModelsFront(models_pb2_grpc.ModelsServicer):
    """See models.proto."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def _message(self, engine: Engine) -> Model:
        return Model(manifest=engine.manifest, counters=engine.counters(), limits=self.registry.limits(engine))

    async def ListModels(self, request: ListModelsRequest, context: grpc.aio.ServicerContext) -> ListModelsResponse:
        models = {key: self._message(engine) for key, engine in self.registry.engines.items()}
        for (name, version), error in self.registry.broken.items():
            models[name, version] = Model(manifest=Manifest(name=name, version=version), error=error.to_proto())
        return ListModelsResponse(models=[models[key] for key in sorted(models)], limits=self.registry.limits())

    async def GetModel(self, request: GetModelRequest, context: grpc.aio.ServicerContext) -> Model:
        try:
            return self._message(self.registry.find(request.name, request.version))
        except CellarError as error:
            await abort(context, error)
