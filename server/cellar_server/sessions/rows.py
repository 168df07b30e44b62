"""Chunks that came one a message: those of many streams and calls, read and admitted together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from cellar_server.errors import CellarError
from cellar_server.sessions.columns import Columns, positions
from cellar_server.sessions.content import Content
from cellar_server.sessions.core import Core
from cellar_server.sessions.digest import digests, mix
from cellar_server.sessions.express import Express
from cellar_server.sessions.frames import Frames
from cellar_server.sessions.messages import Rows, RowsBack
from cellar_server.sessions.selection import chosen, in_time, joined, timed
from cellar_server.sessions.table import engines_of


@dataclass(slots=True)
class _Together:
    """What `Columns` knows as a frame: rows that came one a message."""

    request: Rows
    is_timed: bool


class RowsIn:
    """Takes rows in as `Frames` takes in frames: the same checks, for all of them at once."""

    def __init__(self, core: Core, frames: Frames, express: Express, slot_of: Callable[[str], int]) -> None:
        self.core = core
        self.frames = frames
        self.express = express
        self._slot_of = slot_of  # of a session by its id; CellarError

    def admit(self, requests: Iterable[Rows], now: float) -> None:
        """Runs or queues the chunks, behind what is left of earlier ones; refuses those that cannot run, each in an
        answer of its own."""
        requests = list(requests)
        self.core.counts.copy("read", sum(rows.data.nbytes for rows in requests))
        for _, alike in groupby([*self.express.take_rest(), *requests], key=lambda rows: rows.rest):
            self.finish(now)
            rows = joined(list(alike), self.core.counts)
            try:
                self.frames.check_room(len(rows.data))
            except CellarError as error:
                self.frames.refuse_rows(rows, np.arange(len(rows.call)), error)
                continue
            slots = None
            if rows.ids is not None:
                rows, slots = self._find(rows)
                if not len(slots):
                    continue
            if self.express.run(rows, slots, now):
                continue
            self.express.settle()
            if slots is None:
                rows = self._give_back(rows)
            else:
                self.express.issue(rows, slots)
            rows = self._fit(in_time(self.core, rows, self._steps(rows), now, self.frames.refuse_rows))
            for each in timed(rows):
                self._admit(each, now)

    def finish(self, now: float) -> None:
        """Runs what is left of rows that came before, to its end."""
        while self.express.has_rest:
            self.admit((), now)

    def _give_back(self, rows: Rows) -> Rows:
        """The rows of this model's sessions; those of others go back."""
        theirs = engines_of(rows.handle) != self.core.number
        if not theirs.any():
            return rows
        self.core.replies.append(RowsBack(rows.to, chosen(rows, np.flatnonzero(theirs), self.core.counts)))
        return chosen(rows, np.flatnonzero(~theirs), self.core.counts)

    def _steps(self, rows: Rows) -> np.ndarray:
        """Steps of each row [n] as its bytes say; 1 where a codec is to read them."""
        content: Content = self.frames.content
        return np.ones(len(rows.size), np.int64) if content.is_coded else np.maximum(1, rows.size // content.unit_bytes)

    def _fit(self, rows: Rows) -> Rows:
        """Rows whose bytes are what their lengths and shapes say, with these filled in; the others are refused."""
        content: Content = self.frames.content
        unit, given = content.unit_bytes, rows.frame.inputs
        if rows.ids is None:
            length = np.where(rows.length < 0, 1, rows.length)
        else:  # by default the whole of what was sent
            whole = np.where(rows.first_axis < 0, rows.size // unit, rows.first_axis)
            length = np.where(rows.length <= 0, whole, rows.length)
        rows.length = length
        is_fit = length * unit == rows.size
        has_shape = rows.first_axis >= 0
        if has_shape.any():
            is_fit &= ~has_shape | ((rows.first_axis == length) & (list(given.shape) == list(content.unit_shape)))
        if given.dtype and given.dtype != content.wire_dtype:
            is_fit[:] = False
        if is_fit.all():
            return rows
        for i in np.flatnonzero(~is_fit).tolist():
            shape = [int(rows.first_axis[i]), *given.shape] if has_shape[i] else []
            try:
                content.check(given.dtype, shape, int(rows.size[i]), int(length[i]))
            except CellarError as error:
                self.frames.refuse_rows(rows, np.array([i]), error)
        return chosen(rows, np.flatnonzero(is_fit), self.core.counts)

    def _find(self, rows: Rows) -> tuple[Rows, np.ndarray]:
        """Rows by session id, and the places of their sessions; those of sessions that are not here are refused."""
        assert rows.ids is not None
        slots = np.empty(len(rows.ids), np.int64)
        for i, id in enumerate(rows.ids):
            try:
                slots[i] = self._slot_of(id)
            except CellarError as error:
                slots[i] = -1
                self.frames.refuse_rows(rows, np.array([i]), error)
        found = slots >= 0
        if found.all():
            return rows, slots
        return chosen(rows, np.flatnonzero(found), self.core.counts), slots[found]

    def _admit(self, rows: Rows, now: float) -> None:
        """Rows of one session go in one after the other."""
        distinct = np.unique(rows.handle)
        if len(distinct) == len(rows.handle):
            self._admit_distinct(rows, now)
            return
        seen: dict[int, int] = {}
        turn = np.empty(len(rows.handle), np.int64)
        for i, handle in enumerate(rows.handle.tolist()):
            turn[i] = seen[handle] = seen.get(handle, -1) + 1
        for k in range(int(turn.max()) + 1):
            self._admit_distinct(chosen(rows, np.flatnonzero(turn == k), self.core.counts), now)

    def _admit_distinct(self, rows: Rows, now: float) -> None:
        content, table = self.frames.content, self.core.table
        n, length, frame = len(rows.call), rows.length, rows.frame
        if (absent := rows.position < 0).any():  # where the session stands
            slots, _ = table.resolve(rows.handle, rows.stream)
            rows.position = np.where(absent, table.accepted[slots], rows.position)
        ends = np.cumsum(length)
        end = np.ones(n, np.bool_) if frame.ends and frame.ends[0] else None
        digest = digests(rows.data, length, content.unit_bytes)
        if end is not None:
            digest = mix(digest + np.uint64(1))
        is_timed = bool(frame.priorities) or rows.deadline is not None
        columns = Columns(
            [_Together(rows, is_timed)],  # type: ignore[list-item]
            [n],
            np.zeros(n, np.int64),
            np.arange(n),
            rows.stream,
            rows.handle,
            positions(rows.position),
            length,
            end,
            content.array(rows.data, int(ends[-1])),
            ends - length,
            digest,
            {},
        )
        columns.refuse_unfit(content, self.core.max_chunk)
        self.frames.admit_columns(columns, now)
