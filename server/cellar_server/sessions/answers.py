"""Stored answers: the last W of each session, so that a chunk sent again is answered without running it again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np

from cellar_server.scheduler.work import reserve

# Answers of several emissions, of all sessions together, are kept up to this many bytes; the oldest go first.
MAX_LARGE_BYTES = 1 << 30
# What is kept about an answer: start, length, digest, emissions.
_ENTRY_BYTES = 24
# A count that gets here starts again, at the same place of the ring.
_FAR = 1 << 31


class Answers:
    """Rings of W answers beside the session table. Columns are [W * capacity], the k-th answers of all sessions behind
    the (k - 1)-th, so what a session has not stored is memory that nobody touched.

    A one-emission answer lies in a column; larger ones lie aside, bounded per session and in all. start and length
    are the chunk's, in position units; emissions -1 marks an answer that is kept no longer.
    """

    def __init__(self, capacity: int, depth: int, output_shape: tuple[int, ...], max_bytes: int) -> None:
        self.capacity = capacity
        self.depth = depth
        self.max_bytes = max_bytes
        self.output_shape = output_shape
        self._size = int(np.prod(output_shape, dtype=np.int64))
        self._count = np.zeros(capacity, np.uint32)  # answers ever stored for the session in the slot
        self._start = np.zeros(depth * capacity, np.int64)
        self._length = np.zeros(depth * capacity, np.int32)
        self._digest = np.zeros(depth * capacity, np.uint64)
        self._emissions = np.zeros(depth * capacity, np.int32)
        self._single = reserve(depth * capacity, self._size)
        self._large: OrderedDict[int, np.ndarray] = OrderedDict()  # by place
        self._large_bytes = 0
        self._largest_bytes = 0
        self._num_single = 0
        self.copied_bytes = 0  # into here, ever
        self._num_kept = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the answers kept now, with what is kept about them."""
        return self._large_bytes + self._num_single * self._size * 4 + self._num_kept * _ENTRY_BYTES

    def reset(self, slot: int) -> None:
        """Forgets what a slot held."""
        count = int(self._count[slot])
        if count:
            for k in range(min(count, self.depth)):
                self._forget(k * self.capacity + slot)
            self._num_kept -= min(count, self.depth)
            self._count[slot] = 0

    def _forget(self, place: int) -> None:
        if self._emissions[place] == 1:
            self._num_single -= 1
        large = self._large.pop(place, None)
        if large is not None:
            self._large_bytes -= large.nbytes
        self._emissions[place] = -1

    def store_single(
        self, slots: np.ndarray, starts: np.ndarray, lengths: np.ndarray, digests: np.ndarray, y: np.ndarray
    ) -> None:
        """Stores one-emission answers of distinct sessions. slots .. digests: [n]; y: float32 [n, ...]."""
        places = self._place(slots, starts, lengths, digests)
        self._emissions[places] = 1
        self._single[places] = y.reshape(len(slots), self._size)
        self.copied_bytes += y.nbytes
        self._num_single += len(slots)

    def store_many(
        self,
        slots: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        digests: np.ndarray,
        emissions: np.ndarray,
        y: np.ndarray,
    ) -> None:
        """Stores answers of distinct sessions, of any number of emissions each. slots .. emissions: [n];
        y: float32 [sum(emissions), ...]."""
        places = self._place(slots, starts, lengths, digests)
        self._emissions[places] = emissions
        ends = np.cumsum(emissions)
        single = emissions == 1
        if single.any():
            self._single[places[single]] = y[ends[single] - 1].reshape(-1, self._size)
            self._num_single += int(single.sum())
            self.copied_bytes += int(single.sum()) * self._size * 4
        several = np.flatnonzero(emissions > 1)
        for place, end, n in zip(
            places[several].tolist(), ends[several].tolist(), emissions[several].tolist(), strict=True
        ):
            self._store_large(place, y[end - n : end])
        self._shrink()

    def _shrink(self) -> None:
        """Forgets the oldest of the larger answers where all together are too many."""
        while self._large_bytes > MAX_LARGE_BYTES:
            self._forget(next(iter(self._large)))

    def _store_large(self, place: int, y: np.ndarray) -> None:
        """Keeps an answer aside; the session's older ones go where all of them are more than its limit."""
        self._largest_bytes = max(self._largest_bytes, y.nbytes)
        if self._largest_bytes * self.depth > self.max_bytes:
            size = self.depth * self.capacity
            ring = [(place + (1 + i) * self.capacity) % size for i in range(self.depth)]
            kept = {each: large.nbytes for each in ring if (large := self._large.get(each)) is not None}
            for each in list(kept):
                if sum(kept.values()) + y.nbytes <= self.max_bytes:
                    break
                del kept[each]
                self._forget(each)
            if y.nbytes > self.max_bytes:
                self._emissions[place] = -1
                return
        self._large[place] = y.copy()
        self._large_bytes += y.nbytes
        self.copied_bytes += y.nbytes

    def _place(self, slots: np.ndarray, starts: Any, lengths: Any, digests: Any) -> np.ndarray:
        """The places [n] that the sessions' next answers take, older ones forgotten."""
        count = self._count[slots].astype(np.int64)
        places = count % self.depth * self.capacity + slots
        full = count >= self.depth
        if full.any():
            old = self._emissions[places]
            self._num_single -= int(np.count_nonzero(full & (old == 1)))
            large = full & (old > 1)
            if large.any():
                for place in places[large].tolist():
                    self._large_bytes -= self._large.pop(place).nbytes
        self._num_kept += len(slots) - int(np.count_nonzero(full))
        count += 1
        if count.max() >= _FAR:
            count = np.where(count >= _FAR, count % self.depth + self.depth, count)
        self._count[slots] = count
        self._start[places] = starts
        self._length[places] = lengths
        self._digest[places] = digests
        return places

    def _kept(self, slot: int) -> list[int]:
        """Places of the session's answers, oldest first."""
        count = int(self._count[slot])
        return [i % self.depth * self.capacity + slot for i in range(max(0, count - self.depth), count)]

    def find(self, slot: int, start: int, length: int, digest: int) -> np.ndarray | bool | None:
        """The stored answer float32 [emissions, ...] of a chunk; None where it is kept no longer; False where the
        session took in something else there."""
        kept = self._kept(slot)
        for place in reversed(kept):
            if int(self._start[place]) == start and int(self._length[place]) == length:
                if int(self._digest[place]) != digest:
                    continue
                return None if self._emissions[place] < 0 else self._at(place)
        return None if not kept or start < int(self._start[kept[0]]) else False

    def _at(self, place: int) -> np.ndarray:
        """The kept answer float32 [emissions, ...] at a place."""
        emissions = int(self._emissions[place])
        if emissions == 1:
            return self._single[place].reshape(1, *self.output_shape).copy()
        if emissions == 0:
            return np.zeros((0, *self.output_shape), np.float32)
        return self._large[place]

    def of(self, slot: int) -> Iterator[tuple[int, int, int, np.ndarray]]:
        """The session's kept answers, oldest first: start, length and digest of the chunk, float32 [emissions, ...]."""
        for place in self._kept(slot):
            if self._emissions[place] >= 0:
                start, length, digest = int(self._start[place]), int(self._length[place]), int(self._digest[place])
                yield start, length, digest, self._at(place)

    def store(self, slot: int, start: int, length: int, digest: int, y: np.ndarray) -> None:
        """Stores one answer float32 [emissions, ...]."""
        count, emissions = int(self._count[slot]), len(y)
        place = count % self.depth * self.capacity + slot
        if count >= self.depth:
            self._forget(place)
        else:
            self._num_kept += 1
        self._count[slot] = count + 1 if count + 1 < _FAR else (count + 1) % self.depth + self.depth
        self._start[place] = start
        self._length[place] = length
        self._digest[place] = digest
        self._emissions[place] = emissions
        if emissions == 1:
            self._single[place] = y.reshape(self._size)
            self._num_single += 1
            self.copied_bytes += y.nbytes
        elif emissions:
            self._store_large(place, y)
            self._shrink()

    def copy(self, source: int, target: int) -> None:
        """The target's slot gets the source's stored answers."""
        for start, length, digest, y in list(self.of(source)):
            self.store(target, start, length, digest, y)
