"""Logging: one line an event, on standard error."""

from __future__ import annotations

import logging
import sys


def set_up(level: str) -> None:
    """Sends the server's log to standard error, at `level` and above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger("cellar_server")
    root.handlers = [handler]
    root.setLevel(level.upper())
    root.propagate = False
