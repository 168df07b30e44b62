"""Rows of work: chunks, whole sequences and generations that wait or run, as columns, not objects."""

from __future__ import annotations

import mmap

import numpy as np


def reserve(rows: int, columns: int, dtype: type = np.float32) -> np.ndarray:
    """Zeros [rows, columns] as untouched virtual memory: a page costs nothing until it is written."""
    count = max(1, rows * columns)
    buffer = mmap.mmap(-1, count * np.dtype(dtype).itemsize, flags=mmap.MAP_PRIVATE)
    return np.frombuffer(buffer, dtype=dtype, count=rows * columns).reshape(rows, columns)


class Kind:
    """What a row of work is part of: plain numbers, which NumPy compares ten times as fast as an enum's."""

    CHUNK = 0
    SEQUENCE = 1
    GENERATION = 2
    PRIMING = 3  # a generation before its first step: the prime graph takes in its condition


class Lot:
    """Inputs that arrived together, which rows of work point into; its outputs where rows take several runs.

    inputs: [n, ...] of the model's input dtype; outputs: float32 [n, ...]; live: rows not yet finished.
    """

    __slots__ = ("inputs", "live", "outputs")

    def __init__(self, inputs: np.ndarray, live: int) -> None:
        self.inputs = inputs
        self.outputs: np.ndarray | None = None
        self.live = live


class Work:
    """A bounded pool of rows of work. Every column is [capacity]; a row is an index into them.

    kind; slot: place in the session table, -1 for none; lot, offset: where its inputs lie; steps, done: of its steps;
    start, length: in position units; owner: number of the frame, predict or generation it belongs to; row: its place
    in it; stream, handle; outlet: rows of one outlet are answered together; call, frame_id: of a row that came in a
    message of its own; digest of its content; order: of arrival; next: the session's next row of work, or -1;
    deadline on the engine's clock (inf for none); arrived on it; is_bulk, ends; keeps: every emission is wanted, not
    only the last; waited: runs it was ready and not taken in; last: a generation's last emission; caller: number of
    whom it is run for, who takes turns with the others; state: float32 [capacity, S] between its runs. is_limited: it
    has a deadline or is bulk; num_limited counts those, so that nobody looks for them where there are none.
    """

    def __init__(self, capacity: int, state_size: int) -> None:
        self.capacity = capacity
        self.state = reserve(capacity, state_size)
        for name, dtype in (
            ("kind", np.int8),
            ("slot", np.int64),
            ("lot", np.int64),
            ("offset", np.int64),
            ("steps", np.int64),
            ("done", np.int64),
            ("start", np.int64),
            ("length", np.int64),
            ("owner", np.int64),
            ("row", np.int64),
            ("stream", np.int64),
            ("outlet", np.int64),
            ("call", np.uint64),
            ("frame_id", np.uint64),
            ("handle", np.uint64),
            ("digest", np.uint64),
            ("next", np.int64),
            ("deadline", np.float64),
            ("arrived", np.float64),
            ("is_bulk", np.bool_),
            ("is_limited", np.bool_),
            ("ends", np.bool_),
            ("keeps", np.bool_),
            ("waited", np.int32),
            ("last", np.int64),
            ("caller", np.int64),
        ):
            setattr(self, name, np.zeros(capacity, dtype))
        self.deadline[:] = np.inf
        self._free = np.arange(capacity - 1, -1, -1, dtype=np.int64)
        self.num_free = capacity
        self.num_limited = 0
        self.lots: dict[int, Lot] = {}
        self._num_lots = 0
        self.num_lot_bytes = 0

    kind: np.ndarray
    slot: np.ndarray
    lot: np.ndarray
    offset: np.ndarray
    steps: np.ndarray
    done: np.ndarray
    start: np.ndarray
    length: np.ndarray
    owner: np.ndarray
    row: np.ndarray
    stream: np.ndarray
    outlet: np.ndarray
    call: np.ndarray
    frame_id: np.ndarray
    handle: np.ndarray
    digest: np.ndarray
    next: np.ndarray
    deadline: np.ndarray
    arrived: np.ndarray
    is_bulk: np.ndarray
    is_limited: np.ndarray
    ends: np.ndarray
    keeps: np.ndarray
    waited: np.ndarray
    last: np.ndarray
    caller: np.ndarray

    @property
    def num_used(self) -> int:
        return self.capacity - self.num_free

    def take(self, count: int) -> np.ndarray:
        """`count` free rows [count], their columns at rest; the caller saw that there are so many."""
        self.num_free -= count
        rows = self._free[self.num_free : self.num_free + count][::-1].copy()
        self.done[rows] = 0
        self.waited[rows] = 0
        self.next[rows] = -1
        self.lot[rows] = -1
        self.ends[rows] = False
        self.keeps[rows] = True
        self.slot[rows] = -1
        self.caller[rows] = 0
        return rows

    def limit(self, rows: np.ndarray, deadline: np.ndarray | float, is_bulk: np.ndarray | bool) -> None:
        """Gives rows just taken [n] their deadlines (engine's clock, inf for none) and says which are bulk."""
        self.deadline[rows] = deadline
        self.is_bulk[rows] = is_bulk
        self.is_limited[rows] = limited = (self.deadline[rows] < np.inf) | self.is_bulk[rows]
        self.num_limited += int(limited.sum())

    def give_back(self, rows: np.ndarray) -> None:
        """Frees rows, and the lots that no row points into any more."""
        count = len(rows)
        # backwards: rows that were taken together come out in the same order again
        self._free[self.num_free : self.num_free + count] = rows[::-1]
        self.num_free += count
        if self.num_limited:
            limited = rows[self.is_limited[rows]]
            if len(limited):
                self.num_limited -= len(limited)
                self.is_limited[limited] = self.is_bulk[limited] = False
                self.deadline[limited] = np.inf
        lots = self.lot[rows].tolist()
        if lots.count(lots[0]) == count:
            if lots[0] >= 0:
                self.drop(lots[0], count)
            return
        for lot in lots:
            if lot >= 0:
                self.drop(lot, 1)

    def add_lot(self, inputs: np.ndarray, live: int) -> int:
        """Keeps inputs [n, ...] for `live` rows; its number."""
        self._num_lots += 1
        self.lots[self._num_lots] = Lot(inputs, live)
        self.num_lot_bytes += inputs.nbytes
        return self._num_lots

    def drop(self, lot: int, count: int) -> None:
        """`count` rows less point into a lot."""
        entry = self.lots[lot]
        entry.live -= count
        if entry.live <= 0:
            self.num_lot_bytes -= entry.inputs.nbytes
            del self.lots[lot]
