"""Models come and go while the server runs; sessions stay with the version that they were opened on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from cellar_proto.v1.manifest_pb2 import Mode
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server import zoo
from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.registry import Registry
from cellar_server.log import about
from cellar_server.runtime.base import StartupError
from cellar_server.store.base import Store, StoreError

T = TypeVar("T")

log = logging.getLogger("cellar_server")

# Seconds between two looks at whether a version's last session is closed.
LOOK_S = 0.05


def _about(key: tuple[str, int]) -> dict[str, Any]:
    return about(model=key[0], version=key[1])


class Loader:
    """Loads and unloads versions of models, one change at a time. start: what starts an engine's thread.

    All of them are opened on one thread: the allocator keeps what it took for a model for the thread that opened it.
    """

    def __init__(self, registry: Registry, start: Callable[[Engine], None]) -> None:
        self.registry = registry
        self.store: Store | None = None
        self._start = start
        self._change = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "loader")

    async def _aside(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """Nothing is loaded or unloaded any more."""
        self._thread.shutdown(wait=False)

    async def load_all(self) -> None:
        """Opens every model of the folder, before any engine starts. StartupError."""
        await self._aside(self._open_all)

    def _open_all(self) -> None:
        config = self.registry.config
        for entry in zoo.find(config.models):
            self._open(entry)
        if not self.registry.engines:
            log.warning("no model in %s can be served", config.models)

    def _open(self, entry: zoo.Entry) -> Engine | None:
        """Opens one model; None, and its error in the registry, where it is broken."""
        registry, config, key = self.registry, self.registry.config, (entry.name, entry.version)
        begun = time.perf_counter()
        try:
            model = zoo.load(
                entry,
                provider=config.provider,
                precision=config.precision,
                intra_op=config.intra_op,
                spin=config.spin,
            )
        except CellarError as error:
            registry.broken[key] = error
            log.error("model %s/%d is broken and not served: %s", *key, error.message, extra=_about(key))
            return None
        try:
            engine = Engine(model, config, registry.directory, store=self.store)
        except StoreError as error:
            raise StartupError(str(error)) from None
        except (MemoryError, OSError, OverflowError) as error:
            what = f"{key[0]}/{key[1]}: {config.max_sessions} sessions of it do not fit: {error}"
            registry.broken[key] = CellarError(Reason.MODEL_BROKEN, what)
            log.error("model %s is not served", what)
            return None
        registry.broken.pop(key, None)
        registry.engines[key] = engine
        log.info(
            "model %s/%d: %s, %s, state %d, %s, %s, loaded in %.0f ms",
            *key,
            Mode.Name(model.manifest.mode).lower().replace("_", "-"),
            model.manifest.architecture,
            model.manifest.state_size,
            model.manifest.precision,
            config.provider,
            1000 * (time.perf_counter() - begun),
            extra=_about(key),
        )
        if model.manifest.precision != config.precision:
            log.info("model %s/%d: the server's precision is %s", *key, config.precision)
        if engine.num_restored:
            log.info("model %s/%d: %d sessions taken up from the store", *key, engine.num_restored, extra=_about(key))
        return engine

    async def load(self, name: str) -> list[int]:
        """Serves what the models folder holds of a model and is not served yet; the versions that serve now.
        MODEL_NOT_FOUND, MODEL_BROKEN."""
        engines = self.registry.engines
        async with self._change:
            entries = [entry for entry in zoo.find(self.registry.config.models) if entry.name == name]
            if not entries:
                raise CellarError(Reason.MODEL_NOT_FOUND, f"the models folder has no {name!r}")
            for entry in entries:
                if (name, entry.version) not in engines:
                    engine = await self._aside(self._open, entry)
                    if engine is not None:
                        self._start(engine)
        versions = sorted(version for each, version in engines if each == name)
        if not versions:
            raise self.registry.broken[name, entries[-1].version]
        return versions

    async def unload(self, name: str, version: int = 0, *, wait_s: float = 0.0, force_reason: str = "") -> int:
        """Opens no new session on a version (0: on any), and ends its serving when its last one is closed, or after
        `wait_s` seconds, where `force_reason` says what the last sessions are told; how many of those there were.
        MODEL_NOT_FOUND; MODEL_BUSY where sessions are left and no reason is given: then it serves on."""
        registry = self.registry
        keys = [key for key in registry.engines if key[0] == name and version in (0, key[1])]
        if not keys:
            what = f"{name!r} version {version}" if version else f"{name!r}"
            raise CellarError(Reason.MODEL_NOT_FOUND, f"there is no model {what}")
        registry.leaving.update(keys)
        try:
            until = time.monotonic() + wait_s
            while any(registry.engines[key].num_sessions for key in keys if key in registry.engines):
                if time.monotonic() >= until:
                    break
                await asyncio.sleep(LOOK_S)
            async with self._change:
                gone = {key: registry.engines[key] for key in keys if key in registry.engines}
                left = sum(engine.num_sessions for engine in gone.values())
                if left and not force_reason:
                    raise CellarError(
                        Reason.MODEL_BUSY, f"model {name!r} has {left} open sessions", retry_after_ms=1000
                    )
                error = CellarError(Reason.SESSION_CLOSED, f"model {name!r} was unloaded: {force_reason}")
                ended = 0
                for key, engine in gone.items():
                    del registry.engines[key]
                    await self._aside(engine.stop, registry.config.drain_s)
                    ended += engine.release(error)
                    registry.tell_watchers()
                    log.info("model %s/%d was unloaded", *key, extra=_about(key))
                return ended
        finally:
            registry.leaving.difference_update(keys)
