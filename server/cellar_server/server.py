"""The composition root: models, engines, services, and their life."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from enum import Enum

import grpc
from cellar_proto.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
)
from cellar_proto.v1.manifest_pb2 import Mode
from cellar_proto.v1.reason_pb2 import Reason
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cellar_server import zoo
from cellar_server.config import Config
from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.inference import Inference
from cellar_server.front.models import ModelsFront
from cellar_server.front.oip import schema as oip
from cellar_server.front.oip.service import OpenInference
from cellar_server.front.registry import Registry
from cellar_server.front.sessions import SessionsFront
from cellar_server.runtime.base import StartupError
from cellar_server.runtime.onnx import check_provider
from cellar_server.sessions.messages import Reply
from cellar_server.store.base import StoreError
from cellar_server.store.sqlite import open_store

log = logging.getLogger("cellar_server")

SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name,
    sessions_pb2.DESCRIPTOR.services_by_name["Sessions"].full_name,
    models_pb2.DESCRIPTOR.services_by_name["Models"].full_name,
)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Life(Enum):
    """new -> serving -> draining -> stopped."""

    NEW = "new"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


class Server:
    """A server of one folder of models. `await start()`, then `port`; `await drain()` ends it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.life = Life.NEW
        self.port = 0
        self.registry = Registry(config)
        self.health = health.aio.HealthServicer()
        self._grpc: grpc.aio.Server | None = None
        self._named: set[str] = set()
        self._changes = asyncio.Lock()  # one load or unload at a time

    async def start(self) -> None:
        """Loads the models and listens; StartupError where it cannot."""
        # the engine's thread must get the interpreter soon after a run, not after the default 5 ms
        sys.setswitchinterval(0.0005)
        check_provider(self.config.provider)
        await asyncio.get_running_loop().run_in_executor(None, self._load)
        size = self.config.max_message_bytes
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                # pings of callers that keep long, quiet streams open are no abuse
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        inference_pb2_grpc.add_InferenceServicer_to_server(Inference(self.registry), server)
        sessions_pb2_grpc.add_SessionsServicer_to_server(SessionsFront(self.registry), server)
        models_pb2_grpc.add_ModelsServicer_to_server(ModelsFront(self.registry), server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        server.add_generic_rpc_handlers((OpenInference(self.registry, self).handler(),))
        names = [*SERVICES, oip.SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, server, pool=oip.BothPools())
        try:
            self.port = server.add_insecure_port(self.config.listen)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise StartupError(f"cannot listen on {self.config.listen}: is the port taken?")
        for engine in self.registry.engines.values():
            self._start(engine)
        await server.start()
        self._grpc = server
        self.life = Life.SERVING
        await self._set_health()
        host = self.config.listen.rpartition(":")[0]
        log.info("cellar-server listening on %s:%d", host, self.port)

    def _start(self, engine: Engine) -> None:
        loop = asyncio.get_running_loop()
        engine.start(lambda replies: loop.call_soon_threadsafe(self._dispatch, engine, replies))

    def _load(self) -> None:
        for entry in zoo.find(self.config.models):
            self._load_entry(entry)
        if not self.registry.engines:
            log.warning("no model in %s can be served", self.config.models)

    def _load_entry(self, entry: zoo.Entry) -> Engine | None:
        """Opens one model; None, and its error in the registry, where it is broken."""
        config, key = self.config, (entry.name, entry.version)
        begun = time.perf_counter()
        try:
            model = zoo.load(entry, provider=config.provider, intra_op=config.intra_op, spin=config.spin)
        except CellarError as error:
            self.registry.broken[key] = error
            log.error("model %s/%d is broken and not served: %s", *key, error.message)
            return None
        try:
            engine = Engine(
                model,
                config,
                self.registry.directory,
                store=open_store(config.store, is_synced=config.store_sync),
            )
        except StoreError as error:
            raise StartupError(str(error)) from None
        self.registry.broken.pop(key, None)
        self.registry.engines[key] = engine
        log.info(
            "model %s/%d: %s, %s, state %d, %s, loaded in %.0f ms",
            *key,
            Mode.Name(model.manifest.mode).lower().replace("_", "-"),
            model.manifest.architecture,
            model.manifest.state_size,
            config.provider,
            1000 * (time.perf_counter() - begun),
        )
        if engine.num_restored:
            log.info("model %s/%d: %d sessions taken up from the store", *key, engine.num_restored)
        return engine

    @property
    def is_serving(self) -> bool:
        return self.life is Life.SERVING

    async def load_model(self, name: str) -> None:
        """Serves what the models folder holds of a model and is not served yet. MODEL_NOT_FOUND, MODEL_BROKEN."""
        async with self._changes:
            entries = [entry for entry in zoo.find(self.config.models) if entry.name == name]
            if not entries:
                raise CellarError(Reason.MODEL_NOT_FOUND, f"the models folder has no {name!r}")
            loop = asyncio.get_running_loop()
            for entry in entries:
                if (name, entry.version) not in self.registry.engines:
                    engine = await loop.run_in_executor(None, self._load_entry, entry)
                    if engine is not None:
                        self._start(engine)
            await self._set_health()
        if not any(each == name for each, _ in self.registry.engines):
            raise self.registry.broken[name, entries[-1].version]

    async def unload_model(self, name: str) -> None:
        """Takes no new work for a model, finishes what was accepted, and ends its sessions. MODEL_NOT_FOUND."""
        async with self._changes:
            gone = {key: engine for key, engine in self.registry.engines.items() if key[0] == name}
            if not gone:
                raise CellarError(Reason.MODEL_NOT_FOUND, f"there is no model {name!r}")
            error = CellarError(Reason.SESSION_CLOSED, f"model {name!r} was unloaded")
            loop = asyncio.get_running_loop()
            for key, engine in gone.items():
                del self.registry.engines[key]
                await loop.run_in_executor(None, engine.stop, self.config.drain_s)
                engine.release(error)
                log.info("model %s/%d was unloaded", *key)
            await self._set_health()

    def _dispatch(self, engine: Engine, replies: list[Reply]) -> None:
        """An engine's replies to their askers, on the event loop."""
        for reply in replies:
            reply.to.receive(reply)
        if not engine.is_healthy and self.life is Life.SERVING:
            self._sick = asyncio.ensure_future(self._set_health())

    async def _set_health(self) -> None:
        engines = self.registry.engines
        is_serving = self.life is Life.SERVING and all(engine.is_healthy for engine in engines.values())
        for name in ("", *SERVICES):
            await self.health.set(name, _SERVING if is_serving else _NOT_SERVING)
        names = {name for name, _ in (*engines, *self.registry.broken)}
        # a model that was unloaded is known and not served
        self._named |= names
        for name in self._named:
            newest = [engine for (each, _), engine in engines.items() if each == name]
            serves = self.life is Life.SERVING and any(engine.is_healthy for engine in newest)
            await self.health.set(f"cellar.v1/{name}", _SERVING if serves else _NOT_SERVING)

    async def drain(self) -> None:
        """Takes no new work, finishes what was accepted, and stops within the configured time."""
        if self.life is not Life.SERVING or self._grpc is None:
            return
        self.life = Life.DRAINING
        await self._set_health()
        log.info("draining for at most %g s", self.config.drain_s)
        loop = asyncio.get_running_loop()
        engines = self.registry.engines.values()
        await asyncio.gather(*(loop.run_in_executor(None, engine.stop, self.config.drain_s) for engine in engines))
        await asyncio.sleep(0)  # the engines' last replies
        await self._grpc.stop(min(1.0, self.config.drain_s))
        self.life = Life.STOPPED
        log.info("stopped")

    async def wait(self) -> None:
        """Until the server has stopped."""
        if self._grpc is not None:
            await self._grpc.wait_for_termination()
