"""A real server of a tiny zoo on a free port, in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from cellar_server.config import Config, Settings
from cellar_server.server import Server

from tests.fakes.zoo import write_counter


class Running:
    """A server on an event loop of its own thread."""

    def __init__(self, config: Config, settings: Settings | None = None, **parts: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.server = Server(config, settings, **parts)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.run(self.server.start())
        self.address = f"127.0.0.1:{self.server.port}"

    def run(self, coroutine: object) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)  # type: ignore[arg-type]

    def stop(self) -> None:
        self.run(self.server.drain())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Running]:
    zoo = tmp_path_factory.mktemp("zoo")
    write_counter(zoo)
    write_counter(zoo, "other")
    (write_counter(zoo, "broken") / "model.onnx").write_bytes(b"not a graph")
    config = Config(
        listen="127.0.0.1:0",
        transport=transport,
        models=zoo,
        max_message_bytes=1 << 20,
        max_sessions=4096,
        max_frames_in_flight=8,
        drain_s=5,
    )
    running = Running(config)
    yield running
    running.stop()


@pytest.fixture
def channel(running: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.address) as channel:
        yield channel
