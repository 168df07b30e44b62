"""The short way: chunks that came one a message run at once where nothing else waits and nothing is odd about them."""

from __future__ import annotations

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.sessions.core import Core
from cellar_server.sessions.digest import digests
from cellar_server.sessions.frames import Frames
from cellar_server.sessions.messages import UNARY_STREAM, Rows, RowsReply
from cellar_server.sessions.runs import Runs
from cellar_server.sessions.table import span


class Express:
    """Takes, runs and commits rows in one go: what `Frames` and `Runs` do by way of the queue, for the usual case.

    Usual are chunks of one length, of distinct sessions without chunks in flight, each at its session's position, that
    fit in one run. Of anything else it takes nothing.
    """

    def __init__(self, core: Core, frames: Frames, runs: Runs) -> None:
        self.core = core
        self.frames = frames
        self.runs = runs
        # committed and answered, their answers not yet stored: slots, starts, lengths, bytes, outputs
        self._unsettled: list[tuple[np.ndarray, np.ndarray, int, np.ndarray, np.ndarray]] = []

    def run(self, rows: Rows, slots: np.ndarray | None, now: float) -> bool:
        """Whether all of the rows were taken and answered. slots: their sessions' places [n]; None where their handles
        say which."""
        core, table = self.core, self.core.table
        n = len(rows.call)
        q = self._steps(rows, n)
        if not q or core.scheduler.has_ready or self.frames.departing or not core.scheduler.fits(n, q):
            return False
        if slots is None:
            slots, valid = table.resolve(rows.handle, rows.stream)
            if not valid.all():
                return False
        start = rows.position
        accepted = table.accepted[slots]
        if rows.ids is not None:
            start = np.where(start < 0, accepted, start)
        if (start != accepted).any() or table.in_flight[slots].any():
            return False
        if n > 1 and len(set(slots.tolist())) < n:
            return False
        if rows.deadline is not None and (rows.deadline <= now).any():
            return False
        content = self.frames.content
        inputs = content.array(rows.data, n * q)
        if content.bad_rows(inputs, np.full(n, q)):
            return False
        if rows.ids is not None:
            self.issue(rows, slots)
        self._commit(rows, slots, start, q, inputs.reshape(n, q, *content.unit_shape))
        return True

    def _steps(self, rows: Rows, n: int) -> int:
        """Steps of each row, 0 where they are not the same or something is odd."""
        content, frame = self.frames.content, rows.frame
        size = int(rows.size[0])
        q = size // content.unit_bytes
        length, first_axis = int(rows.length[0]), int(rows.first_axis[0])
        if content.is_coded or frame.ends or frame.priorities or q * content.unit_bytes != size:
            return 0
        if q > self.core.max_chunk or (frame.inputs.dtype and frame.inputs.dtype != content.wire_dtype):
            return 0
        default = 1 if rows.ids is None else q
        if q != (default if length < 0 or (length == 0 and rows.ids is not None) else length):
            return 0
        if first_axis >= 0 and (first_axis != q or tuple(frame.inputs.shape) != content.unit_shape):
            return 0
        if n > 1 and (
            (rows.size != size).any() or (rows.length != length).any() or (rows.first_axis != first_axis).any()
        ):
            return 0
        return q

    def issue(self, rows: Rows, slots: np.ndarray) -> None:
        """Fills in the handles of rows that named their sessions by id."""
        table = self.core.table
        others = table.stream[slots] != UNARY_STREAM
        if others.any():
            for slot in slots[others].tolist():
                table.issue(slot, UNARY_STREAM)
        rows.handle, rows.stream = table.handles(slots), np.full(len(slots), UNARY_STREAM)

    def _commit(self, rows: Rows, slots: np.ndarray, start: np.ndarray, q: int, x: np.ndarray) -> None:
        """Runs inputs x [n, q, ...] and makes the outcome the sessions'."""
        core, table, n = self.core, self.core.table, len(slots)
        place = span(slots)
        state = table.state[place]
        begun = core.clock()
        try:
            y, following = core.model.runtime.step(x, state)
        except Exception:
            error = self.runs.fault("a run failed", Reason.RUN_FAILED)
            self.frames.refuse(rows, list(range(n)), [error] * n)
            return
        ended = core.clock()
        self.runs.count(n, q, ended - begun)
        core.counts.queue_rows += n
        core.counts.queue.add(0.0, n)  # they waited for nothing
        table.state[place] = following
        position = start + q
        table.position[place] = table.accepted[place] = position
        table.last_use[place] = ended
        outputs = y.reshape(n * q, *core.output_shape)
        lengths = np.full(n, q)
        core.replies.append(
            RowsReply(rows.to, rows.frame_id, rows.handle, start, position, lengths, outputs, call=rows.call)
        )
        core.durability.change(slots)
        self._unsettled.append((slots, start, q, rows.data, outputs))

    def settle(self) -> None:
        """Stores the answers: what can wait until they are sent."""
        core = self.core
        for slots, start, q, data, outputs in self._unsettled:
            lengths = np.full(len(slots), q)
            chunk = slots, start, lengths, digests(data, lengths, self.frames.content.unit_bytes)
            if q == 1:
                core.answers.store_single(*chunk, outputs)
            else:
                core.answers.store_many(*chunk, lengths, outputs)
            core.counts.chunks += len(slots)
        self._unsettled.clear()
