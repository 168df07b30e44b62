"""The native transport's module, where `make native` has built it (server/native/module.cc)."""

from typing import Any

def __getattr__(name: str) -> Any: ...
