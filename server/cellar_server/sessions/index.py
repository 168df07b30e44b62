"""Places of sessions by their ids, in few bytes: a million of them are the aim."""

from __future__ import annotations

import secrets

import numpy as np

_MASK = (1 << 64) - 1
_EMPTY, _DELETED = -1, -2
# Part of the slots that may be taken, by entries or by what was deleted.
_NUMERATOR, _DENOMINATOR = 2, 3
_SMALLEST = 64


class Index:
    """A mapping from keys to places. A key is a string, or a number below 2^128: an id of 32 hexadecimal digits.

    Numbers lie in three dense columns (two halves and the place: 24 bytes), and their entries' numbers in a sparse one
    of 4 bytes a slot, found by linear probing: 30 to 40 bytes a session where a dictionary of Python numbers takes
    about 170. The hash is multilinear with random keys (Carter and Wegman, 1979), so that no caller can choose ids
    that collide. Not thread-safe.
    """

    def __init__(self, capacity: int) -> None:
        self._named: dict[str, int] = {}
        # reserved at its limit: memory that nobody touches until it is used
        self._high = np.empty(capacity, np.uint64)
        self._low = np.empty(capacity, np.uint64)
        self._place = np.empty(capacity, np.int64)
        # numbers come out of these views faster than out of the arrays
        self._highs, self._lows, self._places = (memoryview(a) for a in (self._high, self._low, self._place))  # type: ignore[arg-type]
        self._free: list[int] = []
        self._fresh = 0  # entries ever used
        self._count = 0
        self._a, self._b, self._c = (secrets.randbits(64) | 1 for _ in range(3))
        self._rebuild(_SMALLEST)

    def __len__(self) -> int:
        return self._count + len(self._named)

    def __contains__(self, key: str | int) -> bool:
        return self.get(key) is not None

    def get(self, key: str | int) -> int | None:
        """The place of a key, or None."""
        if isinstance(key, str):
            return self._named.get(key)
        slots, mask, high, low = self._slots, self._mask, key >> 64, key & _MASK
        at = self._hash(high, low) & mask
        while (entry := slots[at]) != _EMPTY:
            if entry >= 0 and self._lows[entry] == low and self._highs[entry] == high:
                return self._places[entry]
            at = (at + 1) & mask
        return None

    def add(self, key: str | int, place: int) -> bool:
        """Puts a key at a place; False where it has one."""
        if isinstance(key, str):
            return self._named.setdefault(key, place) == place
        if self.get(key) is not None:
            return False
        if (self._taken + 1) * _DENOMINATOR > len(self._slots) * _NUMERATOR:
            self._rebuild(max(_SMALLEST, 1 << (2 * self._count).bit_length()))
        entry = self._free.pop() if self._free else self._fresh
        self._fresh = max(self._fresh, entry + 1)
        high, low = key >> 64, key & _MASK
        self._highs[entry], self._lows[entry], self._places[entry] = high, low, place
        slots, mask = self._slots, self._mask
        at = self._hash(high, low) & mask
        while slots[at] >= 0:
            at = (at + 1) & mask
        self._taken += slots[at] == _EMPTY
        slots[at] = entry
        self._count += 1
        return True

    def remove(self, key: str | int) -> None:
        """Forgets a key, where it is there."""
        if isinstance(key, str):
            self._named.pop(key, None)
            return
        slots, mask, high, low = self._slots, self._mask, key >> 64, key & _MASK
        at = self._hash(high, low) & mask
        while (entry := slots[at]) != _EMPTY:
            if entry >= 0 and self._lows[entry] == low and self._highs[entry] == high:
                slots[at] = _DELETED
                self._places[entry] = _DELETED
                self._free.append(entry)
                self._count -= 1
                return
            at = (at + 1) & mask

    def items(self) -> list[tuple[str | int, int]]:
        """Every key with its place, in no order."""
        entries = np.flatnonzero(self._place[: self._fresh] >= 0)
        highs, lows, places = (a[entries].tolist() for a in (self._high, self._low, self._place))
        numbers = [(high << 64 | low, place) for high, low, place in zip(highs, lows, places, strict=True)]
        return [*self._named.items(), *numbers]

    def _hash(self, high: int, low: int) -> int:
        return ((high * self._a + low * self._b + self._c) & _MASK) >> 32

    def _rebuild(self, size: int) -> None:
        """Sparse slots anew, a power of two of them, without what was deleted."""
        table = np.full(size, _EMPTY, np.int32)
        entries = np.flatnonzero(self._place[: self._fresh] >= 0).astype(np.int32)
        a, b, c = (np.uint64(each) for each in (self._a, self._b, self._c))
        hashes = (self._high[entries] * a + self._low[entries] * b + c) >> np.uint64(32)
        at = (hashes & np.uint64(size - 1)).astype(np.int64)
        while len(entries):
            # of those that want one slot the first gets it, where it is empty; the others go one further
            _, first = np.unique(at, return_index=True)
            wins = np.zeros(len(at), np.bool_)
            wins[first] = table[at[first]] == _EMPTY
            table[at[wins]] = entries[wins]
            entries, at = entries[~wins], (at[~wins] + 1) & (size - 1)
        self._table = table
        self._mask = size - 1
        self._slots = memoryview(table)  # type: ignore[arg-type]
        self._taken = self._count
