"""Threads beside the event loop's, for what would hold it up: files, the store."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

# Questions to a store wait for one another in no more than so many; models have a thread of their own (see Loader).
NUM_ASIDE = 4


def pool(size: int = NUM_ASIDE) -> ThreadPoolExecutor:
    """An executor whose threads are there from the start: each that begins later is memory that the process keeps."""
    made = ThreadPoolExecutor(size, "aside")
    together = threading.Barrier(size)
    for _ in range(size):
        made.submit(together.wait)
    return made
