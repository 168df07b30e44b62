"""`cellar-server`: starts a server and stops it when told to."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

from cellar_server import config_text
from cellar_server.config import Settings, read
from cellar_server.log import set_up
from cellar_server.runtime.base import StartupError
from cellar_server.server import Server, check
from cellar_server.threads import pool

log = logging.getLogger("cellar_server")

# Seconds beyond drain_s after which a process that was told to stop ends whatever still holds it.
LAST_S = 15.0


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains. SIGHUP has it read its files again."""
    log.info("configuration: %s", ", ".join(f"{name}={value}" for name, value, _ in config_text.entries(settings)))
    server = Server(settings.config, settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(pool())

    def told() -> None:
        if not stop.is_set():
            _end_after(settings.config.drain_s + LAST_S)
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    await server.start()
    if hasattr(signal, "SIGHUP"):  # there is none on Windows
        loop.add_signal_handler(signal.SIGHUP, server.access.reload_soon)
    await stop.wait()
    await server.drain()


def _end_after(seconds: float) -> None:
    """Ends the process if it is still there by then: a thread that hangs in a disk or a driver must not hold it."""

    def end() -> None:
        log.error("the server did not stop within %g s: it ends as it is", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def run(main: Coroutine[Any, Any, None]) -> None:
    """On uvloop's event loop where it is installed (it has none for Windows), else on asyncio's."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: stopped when told to, or the configuration is one; 1: could not start, with the reason on standard error."""
    try:
        settings = read(arguments)
        if settings.action == "document":
            print(config_text.document(), end="")
        elif settings.action == "check":
            check(settings.config)
            print(config_text.effective(settings))
        else:
            set_up(settings.config.log_level, settings.config.log_format)
            run(serve(settings))
    except StartupError as error:
        print(f"cellar-server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
