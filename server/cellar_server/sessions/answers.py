"""Stored answers: the last W of each session, so that a chunk sent again is answered without running it again."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from cellar_server.scheduler.work import reserve

# Answers of several emissions, of all sessions together, are kept up to this many bytes; the oldest go first.
MAX_LARGE_BYTES = 1 << 30


class Answers:
    """Rings of W answers beside the session table. Columns are [capacity, W].

    A one-emission answer lies in a column; larger ones lie aside, bounded per session and in all. start and length
    are the chunk's, in position units; emissions -1 marks an answer that is kept no longer.
    """

    def __init__(self, capacity: int, depth: int, output_shape: tuple[int, ...], max_bytes: int) -> None:
        self.depth = depth
        self.max_bytes = max_bytes
        self.output_shape = output_shape
        self._size = int(np.prod(output_shape, dtype=np.int64))
        self._count = np.zeros(capacity, np.int64)  # answers ever stored for the session in the slot
        self._start = np.zeros((capacity, depth), np.int64)
        self._length = np.zeros((capacity, depth), np.int64)
        self._digest = np.zeros((capacity, depth), np.uint64)
        self._emissions = np.zeros((capacity, depth), np.int64)
        self._single = reserve(capacity * depth, self._size)
        self._large: OrderedDict[int, np.ndarray] = OrderedDict()
        self._large_bytes = 0
        self._num_single = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the answers kept now."""
        return self._large_bytes + self._num_single * self._size * 4

    def reset(self, slot: int) -> None:
        """Forgets what a slot held."""
        for k in range(min(int(self._count[slot]), self.depth)):
            self._forget(slot, k)
        if self._count[slot]:
            self._count[slot] = 0

    def _forget(self, slot: int, k: int) -> None:
        if self._emissions[slot, k] == 1:
            self._num_single -= 1
        large = self._large.pop(slot * self.depth + k, None)
        if large is not None:
            self._large_bytes -= large.nbytes
        self._emissions[slot, k] = -1

    def store_single(
        self, slots: np.ndarray, starts: np.ndarray, lengths: np.ndarray, digests: np.ndarray, y: np.ndarray
    ) -> None:
        """Stores one-emission answers of distinct sessions. slots .. digests: [n]; y: float32 [n, ...]."""
        k = self._place(slots, starts, lengths, digests)
        self._emissions[slots, k] = 1
        self._single[slots * self.depth + k] = y.reshape(len(slots), self._size)
        self._num_single += len(slots)

    def store(self, slot: int, start: int, length: int, digest: int, y: np.ndarray) -> None:
        """Stores one answer of any number of emissions. y: float32 [emissions, ...]."""
        slots = np.array([slot])
        if len(y) == 1:
            self.store_single(slots, np.array([start]), np.array([length]), np.array([digest], np.uint64), y)
            return
        k = int(self._place(slots, start, length, digest)[0])
        if not len(y):
            self._emissions[slot, k] = 0
            return
        ring = [slot * self.depth + (k + 1 + i) % self.depth for i in range(self.depth)]
        kept = sum(self._large[place].nbytes for place in ring if place in self._large)
        for place in ring:
            if kept + y.nbytes <= self.max_bytes:
                break
            if place in self._large:
                kept -= self._large[place].nbytes
                self._forget(slot, place % self.depth)
        if y.nbytes > self.max_bytes:
            self._emissions[slot, k] = -1
            return
        self._emissions[slot, k] = len(y)
        self._large[slot * self.depth + k] = y.copy()
        self._large_bytes += y.nbytes
        while self._large_bytes > MAX_LARGE_BYTES:
            place = next(iter(self._large))
            self._forget(*divmod(place, self.depth))

    def _place(self, slots: np.ndarray, starts: object, lengths: object, digests: object) -> np.ndarray:
        k = self._count[slots] % self.depth
        self._count[slots] += 1
        full = self._count[slots] > self.depth
        if full.any():
            old = self._emissions[slots, k]
            self._num_single -= int((full & (old == 1)).sum())
            for slot, place in zip(slots[full & (old > 1)].tolist(), k[full & (old > 1)].tolist(), strict=True):
                self._large_bytes -= self._large.pop(slot * self.depth + place).nbytes
        self._start[slots, k] = starts
        self._length[slots, k] = lengths
        self._digest[slots, k] = digests
        return k

    def find(self, slot: int, start: int, length: int, digest: int) -> np.ndarray | bool | None:
        """The stored answer float32 [emissions, ...] of a chunk; None where it is kept no longer; False where the
        session took in something else there."""
        count = int(self._count[slot])
        kept = range(max(0, count - self.depth), count)
        for i in reversed(kept):
            k = i % self.depth
            if int(self._start[slot, k]) == start and int(self._length[slot, k]) == length:
                if int(self._digest[slot, k]) != digest:
                    continue
                emissions = int(self._emissions[slot, k])
                if emissions < 0:
                    return None
                if emissions == 1:
                    return self._single[slot * self.depth + k].reshape(1, *self.output_shape).copy()
                if emissions == 0:
                    return np.zeros((0, *self.output_shape), np.float32)
                return self._large[slot * self.depth + k]
        oldest = int(self._start[slot, kept[0] % self.depth]) if kept else 0
        return None if not kept or start < oldest else False

    def copy(self, source: int, target: int) -> None:
        """The target's slot gets the source's stored answers."""
        count = int(self._count[source])
        for i in range(max(0, count - self.depth), count):
            k = i % self.depth
            if self._emissions[source, k] < 0:
                continue
            start, length, digest = self._start[source, k], self._length[source, k], self._digest[source, k]
            y = self.find(source, int(start), int(length), int(digest))
            if isinstance(y, np.ndarray):
                self.store(target, int(start), int(length), int(digest), y)
