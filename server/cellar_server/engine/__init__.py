"""The engine: one thread for each served model."""

from cellar_server.engine.engine import Engine

__all__ = ["Engine"]
