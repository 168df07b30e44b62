"""The short way: chunks that came one a message run at once where nothing else waits and nothing is odd about them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cellar_server.errors import CellarError
from cellar_server.sessions.core import Core
from cellar_server.sessions.digest import digests
from cellar_server.sessions.frames import Frames
from cellar_server.sessions.messages import UNARY_STREAM, Rows, RowsReply
from cellar_server.sessions.runs import OVERLAP_S, Outcome, Run, Runs
from cellar_server.sessions.selection import halves
from cellar_server.sessions.table import span
from cellar_server.sessions.timing import Timing

# Runs whose answers may wait to be stored while there is something else to do.
MAX_UNSETTLED = 2


class Express:
    """Takes, runs and commits rows in one go: what `Frames` and `Runs` do by way of the queue, for the usual case.

    Usual are chunks of one length, of distinct sessions without chunks in flight, each at its session's position, that
    are no more than two runs may take. Of anything else it takes nothing.
    """

    def __init__(self, core: Core, frames: Frames, runs: Runs) -> None:
        self.core = core
        self.frames = frames
        self.runs = runs
        # gives what a run gives; whoever it is may send replies and store answers meanwhile
        self.compute: Callable[[Run], Outcome] = runs.compute
        self._running: Rows | None = None
        self._rest: Rows | None = None  # what was too much for the last run
        # committed and answered, their answers not yet stored: slots, starts, steps, inputs, outputs
        self._unsettled: list[tuple[np.ndarray, np.ndarray, int, np.ndarray, np.ndarray]] = []

    def run(self, rows: Rows, slots: np.ndarray | None, now: float) -> bool:
        """Whether the rows were taken: those that one run takes are answered then, the others come with `take_rest`.
        slots: their sessions' places [n]; None where their handles say which."""
        table = self.core.table
        q = self._steps(rows, len(rows.call))
        n = self._num_taken(len(rows.call), q)
        if not n:
            return False
        rest = None
        if n < len(rows.call):
            rows, rest = halves(rows, n)
            slots = None if slots is None else slots[:n]
        if slots is None:
            slots, valid = table.resolve(rows.handle, rows.stream)
            if not valid.all():
                return False
        start = rows.position
        if rows.ids is not None:
            start = np.where(start < 0, table.accepted[slots], start)
        if not self._is_usual(slots, start) or (rows.deadline is not None and (rows.deadline <= now).any()):
            return False
        content = self.frames.content
        inputs = content.array(rows.data, n * q)
        if content.bad_rows(inputs, np.full(n, q)):
            return False
        if rows.ids is not None:
            self.issue(rows, slots)
        self._running, self._rest = rows, rest
        timed = [] if rows.timings is None else list(filter(None, rows.timings))
        for timing in timed:
            timing.taken_s = now
        self._answer(rows, slots, start, inputs.reshape(n, q, *content.unit_shape), timed)
        self._running = None
        return True

    def _answer(self, rows: Rows, slots: np.ndarray, start: np.ndarray, x: np.ndarray, timed: list[Timing]) -> None:
        outcome = self._commit(slots, start, x, timed)
        if isinstance(outcome, CellarError):
            self.frames.refuse_rows(rows, np.arange(len(slots)), outcome)
            return
        position, lengths, outputs = outcome
        reply = RowsReply(rows.to, rows.frame_id, rows.handle, start, position, lengths, outputs, call=rows.call)  # type: ignore[arg-type]
        self.core.replies.append(reply)
        self._unsettled.append((slots, start, x.shape[1], x, outputs))

    @property
    def has_rest(self) -> bool:
        """Some of what was taken was too much for the last run."""
        return self._rest is not None

    def take_rest(self) -> list[Rows]:
        """What was too much for the last run: to be admitted before anything else, but for more rows behind it."""
        rest, self._rest = self._rest, None
        return [] if rest is None else [rest]

    def fail(self, error: CellarError) -> None:
        """Refuses what was taken and not answered."""
        for rows in (self._running, self._rest):
            if rows is not None:
                self.frames.refuse_rows(rows, np.arange(len(rows.call)), error)
        self._running = self._rest = None

    def _num_taken(self, n: int, q: int) -> int:
        """How many of n rows the next run takes; 0 where they need the queue."""
        scheduler = self.core.scheduler
        if not q or scheduler.has_ready or self.frames.departing:
            return 0
        most = scheduler.most_rows(q)
        if n <= most:
            return n
        if n > 2 * most:
            return 0
        # two groups of callers take turns: those whose replies wait send again while the others' chunks run
        waiting = sum(len(reply.call) for reply in self.core.replies if isinstance(reply, RowsReply))
        return min(most, (n + waiting + 1) // 2)

    def _is_usual(self, slots: np.ndarray, start: np.ndarray) -> bool:
        """Distinct sessions without chunks in flight, each at the position where its chunk starts."""
        table, n = self.core.table, len(slots)
        if (start != table.accepted[slots]).any() or table.in_flight[slots].any():
            return False
        return n == 1 or len(set(slots.tolist())) == n

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

    def _commit(
        self, slots: np.ndarray, start: np.ndarray, x: np.ndarray, timed: list[Timing]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | CellarError:
        """Runs inputs x [n, q, ...] and makes the outcome the sessions': positions and emissions of each [n], and the
        outputs float32 [n * q, ...]. timed: of those rows that are traced."""
        core, table, (n, q) = self.core, self.core.table, x.shape[:2]
        place = span(slots)
        run = Run(slots, np.full(n, q), x, table.state[place], float(core.scheduler.cost(n, q)))
        if not isinstance(place, slice):
            core.counts.copy("state", run.state.nbytes)
        if len(self._unsettled) >= MAX_UNSETTLED and run.cost_s < OVERLAP_S:
            self.settle()
        for timing in timed:
            timing.begin(core.clock(), n)
        outcome = self.compute(run)
        ended = core.clock()
        for timing in timed:
            timing.ended_s = ended
        if isinstance(outcome, CellarError):
            return outcome
        y, following = outcome
        self.runs.count(run)
        core.counts.queue_rows += n
        core.counts.queue.add(0.0, n)  # they waited for nothing
        table.state[place] = following
        core.counts.copy("state", following.nbytes)
        position = start + q
        table.position[place] = table.accepted[place] = position
        table.last_use[place] = ended
        core.durability.change(slots)
        return position, np.full(n, q), y.reshape(n * q, *core.output_shape)

    @property
    def is_unsettled(self) -> bool:
        """Answers are to be stored."""
        return bool(self._unsettled)

    def settle(self) -> None:
        """Stores the answers, in the order of their runs: what can wait until nothing else is to do, or beside the next
        run."""
        core = self.core
        for slots, start, q, data, outputs in self._unsettled:
            lengths = np.full(len(slots), q)
            chunk = slots, start, lengths, digests(data.reshape(-1), lengths, self.frames.content.unit_bytes)
            if q == 1:
                core.answers.store_single(*chunk, outputs)
            else:
                core.answers.store_many(*chunk, lengths, outputs)
            core.counts.chunks += len(slots)
        self._unsettled.clear()
