"""A thread beside the engine's: one of them computes a run while the other keeps the books."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Runner:
    """One job at a time, once `open` has started the thread."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], bool] | None] = queue.SimpleQueue()
        self._begun = threading.Lock()
        self._begun.acquire()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def open(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def start(self, job: Callable[[], None], *, waits: bool = True) -> None:
        """Runs `job` on the thread; it must not raise.

        waits: the caller goes on once the job has begun. Where the job computes: else the caller would hold the
        interpreter, for up to a switch interval, against the very job that is to run beside it.
        """
        self._jobs.put((job, waits))
        if waits:
            self._begun.acquire()

    def stop(self) -> None:
        """Ends the thread after its job."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def _main(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, is_awaited = given
            if is_awaited:
                self._begun.release()
            job()
