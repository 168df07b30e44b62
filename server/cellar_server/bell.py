"""What wakes a thread that waits for more than one thing."""

from __future__ import annotations

import contextlib
import threading


class Bell:
    """Rings for one thread that waits, and may be rung before it does."""

    def __init__(self) -> None:
        self._rung = threading.Lock()
        self._rung.acquire()

    def ring(self) -> None:
        """Ends a `wait`, or the next one; from any thread."""
        if self._rung.locked():
            with contextlib.suppress(RuntimeError):  # somebody else was faster
                self._rung.release()

    def wait(self, timeout_s: float, stays_awake: bool = False) -> None:
        """Until it is rung, or was since the last time. Negative: for good. It sleeps in any case: to stay awake
        would keep the event loop from running."""
        self._rung.acquire(timeout=timeout_s if timeout_s >= 0 else -1)
