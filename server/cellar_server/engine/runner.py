"""A thread that computes a run while the engine's own thread keeps the books."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Runner:
    """One job at a time; the thread starts with the first.

    The caller of `start` goes on once the job has begun: else it would hold the interpreter, for up to a switch
    interval, against the very job that is to run beside it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._begun = threading.Lock()
        self._begun.acquire()
        self._thread: threading.Thread | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Runs `job` on the thread; it must not raise."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(job)
        self._begun.acquire()

    def stop(self) -> None:
        """Ends the thread after its job."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _main(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._begun.release()
            job()
