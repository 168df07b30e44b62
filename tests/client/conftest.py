"""The real server of a tiny zoo, shared with the contract's tests."""

import pytest

from tests.contract.conftest import running

__all__ = ["running"]


@pytest.fixture
def address(running: object) -> str:
    return running.address  # type: ignore[attr-defined, no-any-return]
