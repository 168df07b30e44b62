"""A real server of a counter and of the zoo's models, and clients of other people's making."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import cellar_client
import pytest
import tritonclient.grpc as tritonclient
from cellar_server.config import Config

from benchmarks import network
from benchmarks.serving import ZOO
from tests.contract.conftest import Running
from tests.fakes.zoo import write_counter


@pytest.fixture(scope="session")
def running_oip(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Running]:
    zoo = tmp_path_factory.mktemp("oip-zoo")
    write_counter(zoo)
    network.write_entry(zoo)
    for name in ("digits", "sentiment", "describe", "forecast", "chars-en"):
        shutil.copytree(ZOO / name, zoo / name)
    (write_counter(zoo, "broken") / "model.onnx").write_bytes(b"not a graph")
    config = Config(
        listen="127.0.0.1:0",
        transport=transport,
        models=zoo,
        max_sessions=4096,
        max_message_bytes=1 << 20,
        drain_s=5,
    )
    running = Running(config)
    yield running
    running.stop()


@pytest.fixture
def triton(running_oip: Running) -> Iterator[tritonclient.InferenceServerClient]:
    with tritonclient.InferenceServerClient(running_oip.address) as client:
        yield client


@pytest.fixture
def native(running_oip: Running) -> Iterator[cellar_client.Client]:
    with cellar_client.Client(running_oip.address) as client:
        yield client
