"""A real server over the zoo, as a process of its own, for the tests that use a model as a caller does."""

from __future__ import annotations

from collections.abc import Iterator

import cellar_client
import pytest

from benchmarks.serving import Served, served


@pytest.fixture(scope="package")
def server() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.fixture
def client(server: Served) -> Iterator[cellar_client.Client]:
    with cellar_client.Client(server.address) as made:
        yield made
