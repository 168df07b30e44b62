"""The real server of a tiny zoo, shared with the contract's tests."""

from tests.contract.conftest import running

__all__ = ["running"]
