"""What a client can ask of models: which there are, and what they answer to whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from cellar_proto.v1 import models_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cellar_client.calls import Calls
from cellar_client.codec import Codec
from cellar_client.emissions import Emissions
from cellar_client.errors import CellarError, SessionNotFound
from cellar_client.messages import ModelInfo, model_info


class ModelVerbs(Calls):
    """What may be asked of models. Every verb raises CellarError's kinds."""

    async def _models(self) -> list[ModelInfo]:
        """All models of the server, the broken ones with their error."""
        found = await self._ask("models", "ListModels", models_pb2.ListModelsRequest())
        return [model_info(model) for model in found.models]

    async def _model(self, name: str, version: int = 0) -> ModelInfo:
        """One model, with its counters as they stand; version 0 is the newest."""
        request = models_pb2.GetModelRequest(name=name, version=version)
        return model_info(await self._ask("models", "GetModel", request))

    async def _is_serving(self, model: str = "", *, timeout: float = 2.0) -> bool:
        """Whether the server in use says that it serves, or that a model does; False where it does not answer in time.
        Nobody else is asked, and no token is needed."""
        stub: Any = health_pb2_grpc.HealthStub(self._links.current.channel)
        request = health_pb2.HealthCheckRequest(service=f"cellar.v1/{model}" if model else "")
        try:
            answer = await self._transport.call(stub.Check, request, timeout=timeout, wait_for_ready=True)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _load(self, model: str) -> list[int]:
        """Has the server serve what its models folder holds of a model; the versions that it serves now."""
        return list((await self._ask("models", "LoadModel", models_pb2.LoadModelRequest(name=model))).versions)

    async def _unload(self, model: str, version: int = 0, *, wait_s: float = 0.0, force_reason: str = "") -> int:
        """Has the server end a version (0: all) when its last session is closed, or after wait_s seconds, where
        force_reason tells the last ones why; how many those were. ModelBusy where some are left and no reason is
        given."""
        request = models_pb2.UnloadModelRequest(name=model, version=version, wait_s=wait_s, force_reason=force_reason)
        answer = await self._ask("models", "UnloadModel", request, self.timeout + wait_s)
        return int(answer.sessions_ended)

    async def _codec(self, name: str, version: int = 0) -> Codec:
        codec = self._codecs.get((name, version))
        if codec is None:
            codec = self._codecs[name, version] = Codec(await self._model(name, version))
        return codec

    async def _predict(
        self, model: str, x: Any, *, version: int = 0, all_emissions: bool | None = None, timeout: float | None = None
    ) -> Emissions:
        """The answer to one whole sequence: a text, [time, ...] values, or one step [...].

        float32 [...] for one-to-one and many-to-one, [time, ...] for many-to-many (or with all_emissions).
        """
        answers = await self._predict_many(model, [x], version=version, all_emissions=all_emissions, timeout=timeout)
        if isinstance(answers[0], CellarError):
            raise answers[0]
        return answers[0]

    async def _predict_many(
        self,
        model: str,
        xs: Sequence[Any],
        *,
        version: int = 0,
        all_emissions: bool | None = None,
        bulk: bool = False,
        timeout: float | None = None,
    ) -> list[Emissions | CellarError]:
        """The answers to many whole sequences of any lengths, in order; a sequence that failed has its error there."""
        codec = await self._codec(model, version)
        answers: list[Emissions | CellarError] = [SessionNotFound("")] * len(xs)
        for places, lengths, parts, errors in codec.calls(xs):
            for i, error in errors.items():
                answers[i] = error
            if not places:
                continue
            seconds = timeout or self.timeout
            request = codec.predict_request(
                lengths, parts, version=version, timeout_s=seconds, all_emissions=all_emissions, bulk=bulk
            )
            response = await self._ask("inference", "Predict", request, seconds)
            for i, answer in zip(places, codec.predictions(response, all_emissions), strict=True):
                answers[i] = answer
        return answers
