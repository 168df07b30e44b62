"""Chunks of sessions: columns of them are queued, and committed when their last run is over."""

from __future__ import annotations

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.scheduler.work import Kind
from cellar_server.sessions.columns import Columns
from cellar_server.sessions.content import Content
from cellar_server.sessions.core import LATE, Core
from cellar_server.sessions.durability import lost
from cellar_server.sessions.messages import UNARY_STREAM, FrameRequest, Rows
from cellar_server.sessions.outbox import Outbox
from cellar_server.sessions.table import span

# More frames than ever come: outlets of askers without a stream lie below all streams, in the order of their frames.
_FAR = 1 << 62


class Frames:
    """Queues chunks, and commits them: row, tail, position and answer become the session's together."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.content = Content(core.model)
        self.departing: set[int] = set()  # sessions that take nothing more in: another server asks for them
        self._requests: dict[int, FrameRequest | Rows] = {}  # those with rows in work, by number
        self._number = 0
        self._outbox = Outbox(core, self._requests)
        self._tails: dict[int, bytes] = {}  # what the codec holds back after a row of work
        # committed, their answers neither stored nor sent: rows, slots, positions after them, outputs
        self._unsettled: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    # -- in ------------------------------------------------------------------------------------------------------

    def check_room(self, num_bytes: int) -> None:
        """CellarError SHUTTING_DOWN, LEASE_LOST or OVERLOADED where no chunk can be taken in."""
        self.core.check_open()
        self.core.durability.check_held()
        self.core.check_room(0, num_bytes)

    def refuse(self, request: FrameRequest | Rows, rows: list[int], errors: list[CellarError]) -> None:
        """Answers rows with their errors."""
        self.core.counts.chunks_failed += len(rows)
        self._outbox.refuse(request, rows, errors)

    def refuse_rows(self, rows: Rows, places: np.ndarray, error: CellarError) -> None:
        """Answers the rows at `places` with one error."""
        if len(places):
            self.core.counts.chunks_failed += len(places)
            self._outbox.refuse_rows(rows, places, error)

    def admit_columns(self, columns: Columns, now: float) -> None:
        """Rows of which no two are of the same session."""
        core, table, work = self.core, self.core.table, self.core.work
        length, start, digest = columns.length, columns.start, columns.digest
        slot, valid = table.resolve(columns.handle, columns.stream)
        errors: dict[int, CellarError] = {}
        if not valid.all():
            for i in np.flatnonzero(~valid).tolist():
                errors[i] = table.why_void(int(columns.handle[i]))
        errors |= {i: error for i, error in columns.errors.items() if i not in errors}
        if self.departing:
            for i in [i for i, each in enumerate(slot.tolist()) if each in self.departing]:
                errors.setdefault(i, lost(table.id_of(slot[i])))
        odd = start != table.accepted[slot]
        if self.content.is_coded:
            odd |= length == 0
        if odd.any():
            for i in np.flatnonzero(odd).tolist():
                if i not in errors:
                    error = self._replay(columns, i, int(slot[i]), int(digest[i]))
                    if error is not None:
                        errors[i] = error
        full = table.in_flight[slot] >= core.config.max_chunks_in_flight
        if full.any():
            what = f"the session has {core.config.max_chunks_in_flight} chunks in flight"
            for i in np.flatnonzero(full).tolist():
                errors.setdefault(i, CellarError(Reason.OVERLOADED, what, retry_after_ms=20))
        left = np.arange(len(length))
        if errors:
            left = np.setdiff1d(left, list(errors))
        if len(left) > work.num_free:
            errors.update((i, core.overloaded()) for i in left[work.num_free :].tolist())
            left = left[: work.num_free]
        if errors:
            self._refuse_rows(columns, errors)
        if len(left):
            self._queue(columns, slot, left, now)

    def _queue(self, columns: Columns, slot: np.ndarray, left: np.ndarray, now: float) -> None:
        """Rows `left` [m] of the columns become rows of work."""
        table, work = self.core.table, self.core.work
        length = columns.length
        taken = work.take(len(left))
        is_whole = len(left) == len(length)
        counts = (
            columns.counts if is_whole else np.bincount(columns.owner[left], minlength=len(columns.counts)).tolist()
        )
        for place, (chunks, live) in enumerate(zip(columns.frames, counts, strict=True), self._number + 1):
            if live:
                chunks.request.live = live
                self._requests[place] = chunks.request
                if chunks.request.timing is not None:
                    self.core.time(Kind.CHUNK, place, chunks.request.timing)
        slots = slot[left]
        work.kind[taken] = Kind.CHUNK
        work.slot[taken] = slots
        work.arrived[taken] = now
        work.lot[taken] = work.add_lot(columns.inputs, len(left))
        work.offset[taken] = columns.offset[left]
        work.steps[taken] = work.length[taken] = length[left]
        work.start[taken] = columns.start[left]
        work.owner[taken] = columns.owner[left] + (self._number + 1)
        work.row[taken] = columns.row[left]
        work.stream[taken] = columns.stream if isinstance(columns.stream, int) else columns.stream[left]
        request = columns.frames[0].request
        if isinstance(request, Rows):
            work.outlet[taken] = request.outlet
            work.call[taken], work.frame_id[taken] = request.call[left], request.frame_id[left]
        elif request.stream == UNARY_STREAM:
            # what one run finishes for one stream is one answer: here every frame has an asker of its own
            work.outlet[taken] = work.owner[taken] - _FAR
        else:
            work.outlet[taken] = work.stream[taken]
        work.handle[taken] = columns.handle[left]
        work.digest[taken] = columns.digest[left]
        if isinstance(request, Rows):
            work.caller[taken] = request.callers[left]
        else:
            callers = [chunks.request.caller or chunks.request.stream for chunks in columns.frames]
            work.caller[taken] = callers[0] if len(callers) == 1 else np.array(callers)[columns.owner[left]]
        if columns.end is not None:
            work.ends[taken] = columns.end[left]
        self._number += len(columns.frames)
        if columns.is_timed:
            deadline, is_bulk = columns.limits(now)
            work.limit(taken, deadline[left], is_bulk[left])
        table.accepted[slots] += length[left]
        table.in_flight[slots] += 1
        is_idle = table.head[slots] < 0
        if is_idle.all():
            table.head[slots] = table.tail[slots] = taken
            self.activate(taken, now)
            return
        first, later = taken[is_idle], taken[~is_idle]
        table.head[slots[is_idle]] = first
        work.next[table.tail[slots[~is_idle]]] = later
        table.tail[slots] = taken
        if len(first):
            self.activate(first, now)

    def _replay(self, columns: Columns, i: int, slot: int, digest: int) -> CellarError | None:
        """A chunk that does not start where the session expects one: its stored answer is sent again (_REPLAYED), or
        the reason it has none. None: it is no repetition, though it looked like one."""
        core, table, work = self.core, self.core.table, self.core.work
        start, length = int(columns.start[i]), int(columns.length[i])
        expected = int(table.accepted[slot])
        request, row = columns.frames[int(columns.owner[i])].request, int(columns.row[i])
        if start > expected:
            return CellarError(
                Reason.POSITION_GAP,
                f"the chunk starts at {start}; the session expects {expected}",
                expected_position=expected,
            )
        w = int(table.head[slot])
        while w >= 0:
            if int(work.start[w]) == start and int(work.length[w]) == length and int(work.digest[w]) == digest:
                self._outbox.add_asker(w, request, row)
                return _REPLAYED
            w = int(work.next[w])
        found = core.answers.find(slot, start, length, digest)
        if isinstance(found, np.ndarray):
            core.counts.chunks_replayed += 1
            self._outbox.repeat(request, row, start, start + length, found)
            return _REPLAYED
        if start == expected:
            # a chunk without bytes that only ends the text: position alone cannot tell whether it was sent before
            return None
        if found is None and start < int(table.position[slot]):
            return CellarError(
                Reason.ANSWER_EXPIRED,
                f"the chunk at {start} was taken in; its answer is kept no longer",
                expected_position=expected,
            )
        return CellarError(
            Reason.POSITION_CONFLICT,
            f"the session took in something else at {start}; it expects {expected}",
            expected_position=expected,
        )

    def activate(self, rows: np.ndarray, now: float) -> None:
        """Chunks whose turn in their session has come [n]: ready, or (text, PCM) read first."""
        if not self.content.is_coded:
            self.core.scheduler.add(rows)
            return
        core, work = self.core, self.core.work
        codec = core.model.codec
        assert codec is not None
        ready: list[int] = []
        ids: list[np.ndarray] = []
        for w in rows.tolist():
            if work.deadline[w] <= now:
                self.fail(np.array([w]), CellarError(Reason.DEADLINE_EXCEEDED, LATE), now)
                continue
            slot = int(work.slot[w])
            offset = int(work.offset[w])
            raw = work.lots[int(work.lot[w])].inputs[offset : offset + int(work.length[w])].tobytes()
            try:
                taken, tail = codec.take(core.table.held.get(slot, b""), raw, bool(work.ends[w]))
            except CellarError as error:
                self.fail(np.array([w]), error, now)
                continue
            self._tails[w] = tail
            work.drop(int(work.lot[w]), 1)
            work.lot[w] = -1
            work.steps[w] = len(taken)
            if len(taken):
                ready.append(w)
                ids.append(taken)
            else:
                state = core.table.state[slot : slot + 1].copy()
                self.commit(np.array([w]), state, core.no_outputs(), now)
        if ready:
            chosen = np.array(ready)
            counts = work.steps[chosen]
            work.lot[chosen] = work.add_lot(np.concatenate(ids), len(ready))
            work.offset[chosen] = np.cumsum(counts) - counts
            core.scheduler.add(chosen)

    # -- out -----------------------------------------------------------------------------------------------------

    def commit(self, rows: np.ndarray, state: np.ndarray, outputs: np.ndarray, now: float) -> None:
        """Chunks whose last run is over become their sessions'.

        rows: [n]; state: float32 [n, S]; outputs: every emission, packed: float32 [sum(steps of rows), ...].
        """
        table, work = self.core.table, self.core.work
        slots = work.slot[rows]
        table.state[span(slots)] = state
        self.core.counts.copy("state", state.nbytes)
        table.position[slots] += work.length[rows]
        table.in_flight[slots] -= 1
        table.last_use[slots] = now
        self._unsettled.append((rows, slots, table.position[slots], outputs))
        following = work.next[rows]
        table.head[slots] = following
        waits = following >= 0
        if self.content.is_coded:
            for w, slot in zip(rows.tolist(), slots.tolist(), strict=True):
                table.hold(slot, self._tails.pop(w))
            # what follows may be refused while it is read, and answers keep their order
            self.settle()
        if waits.any():
            table.tail[slots[~waits]] = -1
            self.activate(following[waits], now)
        else:
            table.tail[slots] = -1

    def settle(self) -> None:
        """Stores and sends the answers of what was committed: the part that can wait for the next run's start."""
        core, work = self.core, self.core.work
        for rows, slots, positions, outputs in self._unsettled:
            emissions = work.steps[rows]
            chunk = slots, work.start[rows], work.length[rows], work.digest[rows]
            if len(outputs) == len(rows) and (emissions == 1).all():
                core.answers.store_single(*chunk, outputs)
            else:
                core.answers.store_many(*chunk, emissions, outputs)
            core.counts.chunks += len(rows)
            self._outbox.answer(rows, positions, emissions, outputs)
            core.durability.change(slots)
            self._forget(rows)
        self._unsettled.clear()

    def fail(self, rows: np.ndarray, error: CellarError, now: float) -> None:
        """Chunks that end uncommitted, and with each the chunks of its session that wait behind it."""
        core, table, work = self.core, self.core.table, self.core.work
        for w in rows.tolist():
            slot = int(work.slot[w])
            position = int(table.position[slot])
            reason = error
            while w >= 0:
                core.counts.chunks_failed += 1
                own = (self._requests[int(work.owner[w])], int(work.row[w]))
                for request, row in [own, *self._outbox.take_askers(w)]:
                    self._outbox.refuse(request, [row], [reason])
                following = int(work.next[w])
                self._tails.pop(w, None)
                self._forget(np.array([w]))
                reason = CellarError(
                    Reason.POSITION_GAP,
                    f"an earlier chunk failed; the session expects {position}",
                    expected_position=position,
                )
                w = following
            table.accepted[slot] = position
            table.in_flight[slot] = 0
            table.head[slot] = table.tail[slot] = -1
            table.last_use[slot] = now

    def drop_stream(self, stream: int, now: float) -> None:
        """Drops the chunks of a stream that is gone and that have not begun; those that have, finish."""
        work, scheduler = self.core.work, self.core.scheduler
        queued = [int(w) for w in np.flatnonzero(self.core.table.head[: self.core.table.num_touched] >= 0)]
        for slot in queued:
            w = int(self.core.table.head[slot])
            if int(work.stream[w]) == stream and int(work.done[w]) == 0:
                scheduler.remove(np.array([w]))
                self.fail(np.array([w]), CellarError(Reason.CANCELLED, "the stream was cancelled"), now)

    def _forget(self, rows: np.ndarray) -> None:
        """Frees rows of work, and the frames that have none left."""
        owners = self.core.work.owner[rows].tolist()
        requests = self._requests
        if owners.count(owners[0]) == len(owners):
            owners, ended = owners[:1], len(owners)
        else:
            ended = 1
        for number in owners:
            request = requests[number]
            request.live -= ended
            if not request.live:
                del requests[number]
                if request.timing is not None:
                    self.core.timings.pop((Kind.CHUNK, number), None)
        self.core.work.give_back(rows)

    def _refuse_rows(self, columns: Columns, errors: dict[int, CellarError]) -> None:
        by_frame: dict[int, list[int]] = {}
        for i, error in errors.items():
            if error is not _REPLAYED:
                by_frame.setdefault(int(columns.owner[i]), []).append(i)
        for place, indices in by_frame.items():
            rows = columns.row[indices].tolist()
            self.refuse(columns.frames[place].request, rows, [errors[i] for i in indices])


_REPLAYED = CellarError(Reason.REASON_UNSPECIFIED, "answered from the store")
