"""One real server over the zoo for all end-to-end tests."""

from collections.abc import Iterator

import cellar_client
import pytest

from benchmarks.serving import Served, served
from benchmarks.wire import Wire


@pytest.fixture(scope="session", autouse=True)
def each_transport(transport: str) -> str:
    """Everything here is run on each transport."""
    return transport


@pytest.fixture(scope="session")
def server(each_transport: str) -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[cellar_client.Client]:
    with cellar_client.Client(server.address) as made:
        yield made


@pytest.fixture
def wire(server: Served) -> Iterator[Wire]:
    with Wire(server.address) as made:
        yield made
