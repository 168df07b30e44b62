"""`cellar-server` that says what it holds: `python -m tests.e2e.watched [flags of cellar-server]`.

SIGUSR1: a line `watched tasks=N objects=N threads=NAME,...` on standard error, after a collection of garbage.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading

from cellar_server import cli
from cellar_server.server import Server


class WatchedServer(Server):
    """A server that counts its tasks and objects when it is asked to."""

    async def start(self) -> None:
        await super().start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._say)

    def _say(self) -> None:
        gc.collect()
        names = ",".join(thread.name for thread in threading.enumerate())
        line = f"\nwatched tasks={len(asyncio.all_tasks())} objects={len(gc.get_objects())} threads={names}\n"
        os.write(2, line.encode())  # in one piece, whoever else writes


if __name__ == "__main__":
    cli.Server = WatchedServer  # type: ignore[misc]
    sys.exit(cli.main())
