"""The short way: chunks that came one a message run at once where nothing else waits and nothing is odd about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cellar_server.errors import CellarError
from cellar_server.sessions.core import Core
from cellar_server.sessions.frames import Frames
from cellar_server.sessions.messages import UNARY_STREAM, Rows, RowsReply
from cellar_server.sessions.run import OVERLAP_S, Outcome, Run
from cellar_server.sessions.runs import Runs
from cellar_server.sessions.selection import halves
from cellar_server.sessions.table import span
from cellar_server.sessions.timing import Timing
from cellar_server.sessions.unsettled import Unsettled

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
        self._max_chunk = core.max_chunk
        self._seen, self._said = None, (False, ())  # of `_common`: which was looked at last, and what was found
        self._running: Rows | None = None
        self._rest: Rows | None = None  # what was too much for the last run
        self._unsettled = Unsettled(core, frames.content)

    def run(self, rows: Rows, slots: np.ndarray | None, now: float) -> bool:
        """Whether the rows were taken: those that one run takes are answered then, the others come with `take_rest`.
        slots: their sessions' places [n]; None where their handles say which."""
        table = self.core.table
        q = self._steps(rows, len(rows.call))
        n = self._num_taken(len(rows.call), q)
        if not n:
            return False
        if len(rows.call) == 1:
            return self._run_one(rows, slots, q, now)
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
        self._answer(rows, slots, start, inputs.reshape(n, q, *content.unit_shape), _timed(rows, now))
        self._running = None
        return True

    def _run_one(self, rows: Rows, slots: np.ndarray | None, q: int, now: float) -> bool:
        """The same of one row, by numbers instead of columns: an operation on a column costs a microsecond and more
        however short it is, and there are a hundred of them."""
        core, table, content = self.core, self.core.table, self.frames.content
        slot = table.slot_of(int(rows.handle[0]), int(rows.stream[0])) if slots is None else int(slots[0])
        if slot < 0:
            return False
        start, accepted = int(rows.position[0]), int(table.accepted[slot])
        if rows.ids is not None and start < 0:
            start = accepted
        if start != accepted or table.in_flight[slot] or (rows.deadline is not None and rows.deadline[0] <= now):
            return False
        x = content.array(rows.data, q)
        if not content.is_good(x):
            return False
        if slots is not None:
            self.issue(rows, slots)
        self._running = rows
        run = Run(rows.call, np.array([q]), x[None], table.state[slot : slot + 1], float(core.scheduler.cost(1, q)))
        outcome = self._compute(run, _timed(rows, now))
        if isinstance(outcome, CellarError):
            self.frames.refuse_rows(rows, np.arange(1), outcome)
        else:
            y, following = outcome
            table.state[slot] = following[0]
            core.counts.copy("state", following.nbytes)
            end = start + q
            table.position[slot] = table.accepted[slot] = end
            table.last_use[slot] = core.clock()
            if core.durability.is_on:
                core.durability.change(np.array([slot]))
            starts, ends, lengths = np.array([[start], [end], [q]])
            self._reply(rows, starts, ends, lengths, y[0])
            self._unsettled.add_one(slot, start, x, y[0])
        self._running = None
        return True

    def _answer(self, rows: Rows, slots: np.ndarray, start: np.ndarray, x: np.ndarray, timed: list[Timing]) -> None:
        outcome = self._commit(slots, start, x, timed)
        if isinstance(outcome, CellarError):
            self.frames.refuse_rows(rows, np.arange(len(slots)), outcome)
            return
        position, lengths, outputs = outcome
        self._reply(rows, start, position, lengths, outputs)
        self._unsettled.add(slots, start, x, outputs)

    def _reply(self, rows: Rows, start: Any, position: Any, lengths: Any, outputs: np.ndarray) -> None:
        reply = RowsReply(rows.to, rows.frame_id, rows.handle, start, position, lengths, outputs, call=rows.call)  # type: ignore[arg-type]
        self.core.replies.append(reply)

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
        return len(set(slots.tolist())) == n

    def _steps(self, rows: Rows, n: int) -> int:
        """Steps of each row, 0 where they are not the same or something is odd."""
        content = self.frames.content
        size = int(rows.size[0])
        q = size // content.unit_bytes
        length, first_axis = int(rows.length[0]), int(rows.first_axis[0])
        is_plain, shape = self._common(rows.frame)
        if not is_plain or q * content.unit_bytes != size or q > self._max_chunk:
            return 0
        default = 1 if rows.ids is None else q
        if q != (default if length < 0 or (length == 0 and rows.ids is not None) else length):
            return 0
        if first_axis >= 0 and (first_axis != q or shape != content.unit_shape):
            return 0
        if n > 1 and (
            (rows.size != size).any() or (rows.length != length).any() or (rows.first_axis != first_axis).any()
        ):
            return 0
        return q

    def _common(self, frame: Any) -> tuple[bool, tuple[int, ...]]:
        """Whether nothing is odd about what rows have in common, and their shape behind the first axis."""
        if frame is not self._seen:  # mostly it is that of the rows before
            content, inputs = self.frames.content, frame.inputs
            is_other = inputs.dtype and inputs.dtype != content.wire_dtype
            is_plain = not (content.is_coded or frame.ends or frame.priorities or is_other)
            self._seen, self._said = frame, (is_plain, tuple(inputs.shape))
        return self._said

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
        outcome = self._compute(run, timed)
        if isinstance(outcome, CellarError):
            return outcome
        y, following = outcome
        ended = core.clock()
        table.state[place] = following
        core.counts.copy("state", following.nbytes)
        position = start + q
        table.position[place] = table.accepted[place] = position
        table.last_use[place] = ended
        core.durability.change(slots)
        return position, np.full(n, q), y.reshape(n * q, *core.output_shape)

    def _compute(self, run: Run, timed: list[Timing]) -> Outcome:
        """What a run gives, counted. timed: of those of its rows that are traced."""
        counts, n = self.core.counts, len(run.rows)
        if len(self._unsettled) >= MAX_UNSETTLED and run.cost_s < OVERLAP_S:
            self.settle()
        for timing in timed:
            timing.begin(self.core.clock(), n)
        outcome = self.compute(run)
        for timing in timed:
            timing.ended_s = self.core.clock()
        if not isinstance(outcome, CellarError):
            self.runs.count(run)
            counts.queue_rows += n
            counts.queue.add(0.0, n)  # they waited for nothing
        return outcome

    @property
    def is_unsettled(self) -> bool:
        """Answers are to be stored."""
        return len(self._unsettled) > 0

    def settle(self) -> None:
        """Stores the answers, in the order of their runs: what can wait until nothing else is to do, or beside the next
        run."""
        self._unsettled.settle()


def _timed(rows: Rows, now: float) -> list[Timing]:
    """Of those rows that are traced, which are taken in now."""
    timed = [] if rows.timings is None else list(filter(None, rows.timings))
    for timing in timed:
        timing.taken_s = now
    return timed
