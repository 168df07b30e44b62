"""`cellar-server` with faults built in: `python -m tests.e2e.faulty [flags of cellar-server]`.

SIGUSR1: the process kills itself the next time that answers were committed and are about to be sent. With
CELLAR_TEST_NO_DEDUPLICATION=1 a chunk that was taken in before is run again: what the fault tests must notice.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import numpy as np
from cellar_server import cli
from cellar_server.engine import Engine
from cellar_server.server import Server
from cellar_server.sessions.columns import Columns
from cellar_server.sessions.frames import Frames
from cellar_server.sessions.messages import AnswerReply, Reply


class FaultyServer(Server):
    """A server that dies between commit and reply when it is told to."""

    _is_armed = False

    async def start(self) -> None:
        await super().start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._arm)

    def _arm(self) -> None:
        self._is_armed = True

    def _deliver(self, loop: asyncio.AbstractEventLoop, engine: Engine, replies: list[Reply]) -> None:
        if self._is_armed and any(isinstance(reply, AnswerReply) and len(reply.outputs) for reply in replies):
            os.kill(os.getpid(), signal.SIGKILL)
        super()._deliver(loop, engine, replies)


class CarelessFrames(Frames):
    """Takes every chunk for a new one."""

    def admit_columns(self, columns: Columns, now: float) -> None:
        slots, valid = self.core.table.resolve(columns.handle, columns.stream)
        columns.start = np.where(valid, self.core.table.accepted[slots], columns.start)
        super().admit_columns(columns, now)


if __name__ == "__main__":
    cli.Server = FaultyServer  # type: ignore[misc]
    if os.environ.get("CELLAR_TEST_NO_DEDUPLICATION") == "1":
        from cellar_server.sessions import sessions

        sessions.Frames = CarelessFrames  # type: ignore[misc]
    sys.exit(cli.main())
