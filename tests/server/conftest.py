"""What tests of engines open, and leave to be stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def desks() -> Iterator[list[Any]]:
    """Desks (tests/server/test_engine.py) whose engines are stopped behind the test that puts them here."""
    made: list[Any] = []
    yield made
    for desk in made:
        desk.engine.stop(1)
