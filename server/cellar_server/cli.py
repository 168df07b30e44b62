"""`cellar-server`: starts a server and stops it when told to."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from cellar_server.config import Config, from_args
from cellar_server.log import set_up
from cellar_server.runtime.base import StartupError
from cellar_server.server import Server


async def serve(config: Config) -> None:
    """Serves until SIGTERM or SIGINT, then drains."""
    server = Server(config)
    await server.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    await server.drain()


def run(main: Coroutine[Any, Any, None]) -> None:
    """On uvloop's event loop where it is installed (it has none for Windows), else on asyncio's."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: stopped when told to; 1: could not start, with the reason on standard error."""
    try:
        config = from_args(arguments)
        set_up(config.log_level, config.log_format)
        run(serve(config))
    except StartupError as error:
        print(f"cellar-server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
