"""Answers of the short way that are on their way and not yet stored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from cellar_server.sessions.content import Content
from cellar_server.sessions.core import Core
from cellar_server.sessions.digest import digest_of, digests


class Unsettled:
    """Stores them later, in the order of their runs; how many runs wait for that is its length."""

    def __init__(self, core: Core, content: Content) -> None:
        self.core = core
        self._unit_bytes = content.unit_bytes
        self._stores: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._stores)

    def add(self, slots: np.ndarray, start: np.ndarray, x: np.ndarray, outputs: np.ndarray) -> None:
        """Those of a run: sessions [n], positions at which their chunks started [n], inputs [n, q, ...], outputs
        float32 [n * q, ...]."""
        self._stores.append(partial(self._store, slots, start, x, outputs))

    def add_one(self, slot: int, start: int, x: np.ndarray, outputs: np.ndarray) -> None:
        """That of a run of one row: inputs [q, ...], outputs float32 [q, ...]."""
        self._stores.append(partial(self._store_one, slot, start, x, outputs))

    def settle(self) -> None:
        """Stores all."""
        for store in self._stores:
            store()
        self._stores.clear()

    def _store(self, slots: np.ndarray, start: np.ndarray, x: np.ndarray, outputs: np.ndarray) -> None:
        answers, (n, q) = self.core.answers, x.shape[:2]
        lengths = np.full(n, q)
        chunk = slots, start, lengths, digests(x.reshape(-1), lengths, self._unit_bytes)
        if q == 1:
            answers.store_single(*chunk, outputs)
        else:
            answers.store_many(*chunk, lengths, outputs)
        self.core.counts.chunks += n

    def _store_one(self, slot: int, start: int, x: np.ndarray, outputs: np.ndarray) -> None:
        self.core.answers.store(slot, start, len(x), digest_of(x.reshape(-1), len(x), self._unit_bytes), outputs)
        self.core.counts.chunks += 1
