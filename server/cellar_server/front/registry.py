"""The models that a server holds, by name and version, the broken ones with their error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cellar_proto.v1.models_pb2 import Limits
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.config import Config
from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.callers import Callers
from cellar_server.front.holding import Holding
from cellar_server.front.oip.chunks import Chunks
from cellar_server.front.open_streams import OpenStreams
from cellar_server.front.rations import Rations
from cellar_server.limits import LimitTable
from cellar_server.sessions.directory import Directory
from cellar_server.sessions.quota import Quota

if TYPE_CHECKING:
    from cellar_server.front.traces import Traces


class Registry:
    """Engines by (name, version), broken entries beside them, and the directory of all sessions."""

    def __init__(self, config: Config) -> None:
        self.config = config
        table = LimitTable(config.caller_limits, config.model_limits)
        self.rations = Rations(table)
        self.directory = Directory(Quota(table) if table.limits_sessions else None)
        self.engines: dict[tuple[str, int], Engine] = {}
        self.broken: dict[tuple[str, int], CellarError] = {}
        self.leaving: set[tuple[str, int]] = set()  # versions that take no new sessions: they are being unloaded
        self.holding = Holding(self.directory, self.engines)
        self.callers = Callers(config)
        self.streams = OpenStreams()
        self.chunks = Chunks()
        self.watchers: list[Callable[[], object]] = []  # are told, on the event loop, that a model is gone
        self.traces: Traces | None = None
        self.streams_open = self.streams_opened = 0  # of frames

    def tell_watchers(self) -> None:
        """A model is gone: nobody should hold it any more."""
        for tell in self.watchers:
            tell()

    def find(self, name: str, version: int = 0) -> Engine:
        """The engine of a model, version 0 for the newest that serves; MODEL_NOT_FOUND, MODEL_BROKEN."""
        if version:
            found = self.engines.get((name, version))
        else:
            found = max(
                (engine for (each, _), engine in self.engines.items() if each == name),
                key=lambda engine: engine.version,
                default=None,
            )
        if found is not None:
            return found
        for (each, number), error in self.broken.items():
            if each == name and version in (0, number):
                raise CellarError(Reason.MODEL_BROKEN, error.message)
        what = f"{name!r}" + (f" version {version}" if version else "")
        raise CellarError(Reason.MODEL_NOT_FOUND, f"there is no model {what}")

    def find_for_new(self, name: str, version: int = 0) -> Engine:
        """As `find`, for a new session: of a version that is not being unloaded. SHUTTING_DOWN where there is none."""
        found = self.find(name, version)
        if (name, found.version) not in self.leaving:
            return found
        others = [
            engine
            for (each, number), engine in self.engines.items()
            if each == name and (each, number) not in self.leaving
        ]
        if version or not others:
            what = f"model {name!r} version {found.version} is being unloaded"
            raise CellarError(Reason.SHUTTING_DOWN, what, retry_after_ms=1000)
        return max(others, key=lambda engine: engine.version)

    def limits(self, engine: Engine | None = None) -> Limits:
        """What is taken from callers."""
        config = self.config
        max_chunk = config.max_chunk
        if engine is not None and engine.manifest.max_chunk:
            max_chunk = min(max_chunk, engine.manifest.max_chunk)
        return Limits(
            max_message_bytes=config.max_message_bytes,
            max_chunk=max_chunk,
            max_chunks_in_flight=config.max_chunks_in_flight,
            max_rows=config.max_queue_rows,
            max_frames_in_flight=config.max_frames_in_flight,
            durability=config.durability if config.is_storing else "",
        )
