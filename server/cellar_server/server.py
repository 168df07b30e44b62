"""The composition root: models, engines, services, and their life."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import TYPE_CHECKING

from cellar_proto.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
)
from cellar_proto.v1.reason_pb2 import Reason
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from cellar_server.access import Access
from cellar_server.config import Config, Settings
from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.callers import Guard
from cellar_server.front.gate import Gate
from cellar_server.front.inference import Inference
from cellar_server.front.lanes import Lanes
from cellar_server.front.models import ModelsFront
from cellar_server.front.oip import schema as oip
from cellar_server.front.oip.service import OpenInference
from cellar_server.front.readiness import NAME as READINESS
from cellar_server.front.readiness import Readiness
from cellar_server.front.reading import Reader
from cellar_server.front.registry import Registry
from cellar_server.front.sessions import SessionsFront
from cellar_server.loader import Loader
from cellar_server.log import about
from cellar_server.runtime.base import StartupError
from cellar_server.runtime.onnx import check_provider
from cellar_server.sessions.messages import Reply, RowsBack, RowsRefused, RowsReply
from cellar_server.store import open_store
from cellar_server.store.base import Store, StoreError
from cellar_server.transport import is_native_built, open_transport
from cellar_server.transport.base import Transport

if TYPE_CHECKING:
    from cellar_server.front.metrics import MetricsServer
    from cellar_server.front.traces import Traces

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
    """A server of one folder of models. `await start()`, then `port`; `await drain()` ends it. settings: where the
    configuration came from, for what may change while it serves."""

    def __init__(self, config: Config, settings: Settings | None = None, *, traces: Traces | None = None) -> None:
        self.config = config
        self.life = Life.NEW
        self.port = 0
        self.registry = Registry(config)
        self.registry.traces = traces
        self.access = Access(config, self.registry.callers, self.registry.streams, settings)
        self.health = health.aio.HealthServicer()
        self.loader = Loader(self.registry, self._start)
        self._store: Store | None = None
        self._grpc: Transport | None = None
        self._lanes: Lanes | None = None
        self._named: set[str] = set()
        self._readiness = Readiness()
        is_aio = config.transport == "aio" or not is_native_built()
        self.gate = Gate(config.max_calls_in_flight, reads_late=is_aio)
        self.metrics: MetricsServer | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the models and listens; StartupError where it cannot."""
        # the engine's thread must get the interpreter soon after a run, not after the default 5 ms
        sys.setswitchinterval(0.0005)
        check_provider(self.config.provider)
        self.access.announce()
        callers = self.registry.callers
        loop = asyncio.get_running_loop()
        self._store = self.loader.store = await loop.run_in_executor(None, self._open_store)
        await self.loader.load_all()
        server = open_transport(
            self.config.transport,
            max_message_bytes=self.config.max_message_bytes,
            interceptors=(self.gate, Reader(), *((Guard(callers),) if callers.is_on else ())),
        )
        inference, open_inference = self._make_services(server)
        inference_pb2_grpc.add_InferenceServicer_to_server(inference, server)
        sessions_pb2_grpc.add_SessionsServicer_to_server(SessionsFront(self.registry), server)
        models_pb2_grpc.add_ModelsServicer_to_server(ModelsFront(self.registry, self), server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)  # type: ignore[arg-type]
        open_inference.add_to(server)
        names = [*SERVICES, oip.SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if self.config.channelz:
            from cellar_server.front.channelz import add_channelz

            names.append(add_channelz(server, callers))
        reflected = reflection.aio.ReflectionServicer(names, pool=oip.BothPools())
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, server)
        self.port = self.access.add_port(server, self.config.listen)
        if not self.port:
            raise StartupError(f"cannot listen on {self.config.listen}: is the port taken?")
        for engine in self.registry.engines.values():
            self._start(engine)
        if self._store is not None:
            self.registry.holding.start(self._store, can_hold_more=self.config.when_full == "spill")
        if self.config.metrics_listen:
            self.metrics = self._show_metrics()
        await server.start()
        self._grpc = server
        self.life = Life.SERVING
        await self._set_health()
        self._watching = asyncio.ensure_future(self._watch())
        host = self.config.listen.rpartition(":")[0]
        log.info("transport: %s", server.name)
        log.info("cellar-server listening on %s:%d", host, self.port)

    def _make_services(self, server: Transport) -> tuple[Inference, OpenInference]:
        """The services of inference, traced where that is asked for."""
        registry, config = self.registry, self.config
        if config.traces and registry.traces is None:
            try:
                from cellar_server.front.traces import Traces, otlp
            except ImportError:
                raise StartupError("traces: they need OpenTelemetry: pip install 'cellar-serving[traces]'") from None
            registry.traces = Traces(otlp(config.traces), config.trace_sample)
        self._lanes = Lanes(registry, server, asyncio.get_running_loop())
        if registry.traces is None:
            return Inference(registry, self._lanes), OpenInference(registry, self)
        from cellar_server.front.traces import TracedInference, TracedOpenInference

        return TracedInference(registry, self._lanes), TracedOpenInference(registry, self)

    def _show_metrics(self) -> MetricsServer:
        from cellar_server.front.metrics import MetricsServer, ServerCollector

        collector = ServerCollector(self.registry, lambda: self.is_ready)
        return MetricsServer(self.config.metrics_listen, collector)

    def _open_store(self) -> Store | None:
        config = self.config
        if config.durability == "none":
            return None
        try:
            return open_store(config.store, is_synced=config.store_sync, lease_s=config.lease_s)
        except StoreError as error:
            raise StartupError(str(error)) from None

    def _start(self, engine: Engine) -> None:
        loop = asyncio.get_running_loop()
        lane = self._lanes.lane(engine) if self._lanes is not None else None
        engine.start(lambda replies: self._deliver(loop, engine, replies), lane)

    def _deliver(self, loop: asyncio.AbstractEventLoop, engine: Engine, replies: list[Reply]) -> None:
        """An engine's replies on their way, on its thread: those to rows go straight to the transport."""
        others: list[Reply] = []
        for reply in replies:
            if isinstance(reply, RowsReply):
                reply.to.send(reply)
            elif isinstance(reply, RowsRefused):
                reply.to.refuse(reply)
            elif isinstance(reply, RowsBack):
                reply.to.take_back(reply.rows)
            else:
                others.append(reply)
        if others:
            loop.call_soon_threadsafe(self._dispatch, engine, others)

    @property
    def is_serving(self) -> bool:
        return self.life is Life.SERVING

    @property
    def is_ready(self) -> bool:
        """New callers are welcome: it serves, and is not saturated."""
        healthy = all(engine.is_healthy for engine in self.registry.engines.values())
        return self.is_serving and healthy and not self._readiness.is_saturated

    async def load_model(self, name: str) -> list[int]:
        """See Loader.load."""
        try:
            return await self.loader.load(name)
        finally:
            await self._set_health()

    async def unload_model(self, name: str, version: int = 0, *, wait_s: float = 0.0, force_reason: str = "") -> int:
        """See Loader.unload."""
        try:
            return await self.loader.unload(name, version, wait_s=wait_s, force_reason=force_reason)
        finally:
            await self._set_health()

    async def _watch(self) -> None:
        """Once a second: health follows engines that stall and recover, readiness their load. Once a minute: what
        outlived its time in the store goes."""
        loop = asyncio.get_running_loop()
        states: list[bool] = []
        for second in itertools.count(1):
            await asyncio.sleep(1.0)
            found = [engine.is_healthy for engine in self.registry.engines.values()]
            loads = [engine.load for engine in self.registry.engines.values()]
            if self._readiness.look(max(loads, default=0.0)) or found != states:
                states = found
                await self._set_health()
            await self.access.look()
            if self._store is not None and second % 60 == 0:
                await loop.run_in_executor(None, self._purge)

    def _purge(self) -> None:
        assert self._store is not None
        try:
            for model, version in self._store.purge(time.time()):
                what = "a stored session of %s/%d expired: nobody asked for it"
                log.info(what, model, version, extra=about(model=model, version=version))
        except StoreError as error:
            log.error("the store could not be purged: %s", error)

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
        await self.health.set(READINESS, _SERVING if self.is_ready else _NOT_SERVING)
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
        if self._watching is not None:
            self._watching.cancel()
        await self._set_health()
        log.info("draining for at most %g s", self.config.drain_s)
        loop = asyncio.get_running_loop()
        engines = list(self.registry.engines.values())
        with ThreadPoolExecutor(max(1, len(engines))) as threads:  # one each: together they take as long as one
            stopping = [loop.run_in_executor(threads, engine.stop, self.config.drain_s) for engine in engines]
            await asyncio.gather(*stopping)
        await asyncio.sleep(0)  # the engines' last replies
        if self._store is not None:  # from here on other servers may go on with the sessions
            await loop.run_in_executor(None, self._store.close)
        over = CellarError(
            Reason.SHUTTING_DOWN, "the server has stopped: go on elsewhere, or later", retry_after_ms=1000
        )
        self.registry.streams.end_all(over)
        await self._grpc.stop(min(1.0, self.config.drain_s))
        if self.registry.traces is not None:
            await loop.run_in_executor(None, self.registry.traces.close)
        if self.metrics is not None:
            await loop.run_in_executor(None, self.metrics.close)
        self.loader.close()
        self.life = Life.STOPPED
        log.info("stopped")

    async def wait(self) -> None:
        """Until the server has stopped."""
        if self._grpc is not None:
            await self._grpc.wait_for_termination()


def check(config: Config) -> None:
    """Reads the files that a configuration names, as a start would. StartupError."""
    registry = Registry(config)
    Access(config, registry.callers, registry.streams)
    if not config.models.is_dir():
        raise StartupError(f"models: {config.models} is no folder")
