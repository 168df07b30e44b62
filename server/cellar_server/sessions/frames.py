"""Frames: chunks of sessions come in as columns, are queued, and are committed when their last run is over."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from cellar_proto.v1.inference_pb2 import Priority
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.scheduler.work import Kind
from cellar_server.sessions.content import Content
from cellar_server.sessions.core import Core
from cellar_server.sessions.digest import digests, mix
from cellar_server.sessions.messages import AnswerReply, FrameReply, FrameRequest


class Frames:
    """Takes frames in, and commits their chunks: row, tail, position and answer become the session's together."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.content = Content(core.model)
        self._requests: dict[int, FrameRequest] = {}
        self._live: dict[int, int] = {}
        self._number = 0
        self._tails: dict[int, bytes] = {}
        # chunks sent again while they wait or run: who else gets the answer, by row of work
        self._also: dict[int, list[tuple[FrameRequest, int]]] = {}

    # -- in ------------------------------------------------------------------------------------------------------

    def admit(self, requests: list[FrameRequest], now: float) -> None:
        """Queues the chunks of frames in the order of their arrival; refuses those that cannot run, row by row."""
        good: list[FrameRequest] = []
        for request in requests:
            if self._check(request):
                good.append(request)
        while good:
            # a session may stand in several frames: frames that share one go in one after the other
            seen: set[int] = set()
            wave, rest = [], []
            for request in good:
                handles = request.frame.handles
                if len(good) == 1 or (not rest and seen.isdisjoint(handles)):
                    seen.update(handles)
                    wave.append(request)
                else:
                    rest.append(request)
            self._admit_wave(wave, now)
            good = rest

    def _check(self, request: FrameRequest) -> bool:
        """Replies to a frame whose columns or bytes do not fit together; False for it."""
        frame, core = request.frame, self.core
        n = len(frame.handles)
        try:
            core.check_open()
            if not n:
                raise CellarError(Reason.EMPTY_INPUT, "the frame names no session")
            if n > core.work.capacity:
                raise CellarError(Reason.TOO_LARGE, f"the frame has {n} rows; {core.work.capacity} is the limit")
            if len(frame.positions) != n:
                raise CellarError(
                    Reason.INVALID_REQUEST, f"the frame has {n} handles and {len(frame.positions)} positions"
                )
            for name, column in (
                ("lengths", frame.lengths),
                ("timeouts_ms", frame.timeouts_ms),
                ("priorities", frame.priorities),
                ("ends", frame.ends),
            ):
                if len(column) not in (0, 1, n):
                    raise CellarError(Reason.INVALID_REQUEST, f"the frame has {n} handles and {len(column)} {name}")
        except CellarError as error:
            core.replies.append(FrameReply(request.to, frame.frame_id, error))
            return False
        lengths = frame.lengths
        total = sum(lengths) if len(lengths) == n else n * (lengths[0] if lengths else 1)
        try:
            self.content.check(frame.inputs.dtype, list(frame.inputs.shape), len(frame.inputs.data), total)
            core.check_room(0, len(frame.inputs.data))
        except CellarError as error:
            self._refuse(request, list(range(n)), [error] * n)
            return False
        return True

    def _admit_wave(self, requests: list[FrameRequest], now: float) -> None:
        """Frames of which no two name the same session."""
        core, table, work = self.core, self.core.table, self.core.work
        handles: list[int] = []
        starts: list[int] = []
        lengths: list[int] = []
        frames: list[int] = []  # which request each row belongs to
        rows: list[int] = []
        ends: list[bool] = []
        has_timeouts = has_bulk = False
        for place, request in enumerate(requests):
            frame = request.frame
            n = len(frame.handles)
            handles.extend(frame.handles)
            starts.extend(frame.positions)
            lengths.extend(_column(frame.lengths, n, 1))
            frames.extend([place] * n)
            rows.extend(range(n))
            ends.extend(_column(frame.ends, n, False))
            has_timeouts |= len(frame.timeouts_ms) > 0
            has_bulk |= len(frame.priorities) > 0
        handle = np.array(handles, np.uint64)
        start = np.minimum(np.array(starts, np.uint64), np.uint64(1 << 62)).astype(np.int64)
        length = np.array(lengths, np.int64)
        owner = np.array(frames, np.int64)
        end = np.array(ends, np.bool_)
        count = len(handle)
        stream = np.array([request.stream for request in requests], np.int64)[owner]
        data = (
            requests[0].frame.inputs.data
            if len(requests) == 1
            else b"".join([request.frame.inputs.data for request in requests])
        )
        errors: dict[int, CellarError] = {}
        slot, valid = table.resolve(handle, stream)
        for i in np.flatnonzero(~valid).tolist():
            errors[i] = table.why_void(handles[i])
        distinct, times = np.unique(handle, return_counts=True)
        if len(distinct) != count:
            for i in np.flatnonzero(np.isin(handle, distinct[times > 1])).tolist():
                errors.setdefault(i, CellarError(Reason.DUPLICATE_SESSION, "the frame names this session twice"))
        can_be_empty = end if self.content.is_text else np.zeros(count, np.bool_)
        for i in np.flatnonzero((length == 0) & ~can_be_empty).tolist():
            errors.setdefault(i, CellarError(Reason.EMPTY_INPUT, "the chunk has no steps"))
        for i in np.flatnonzero(length > core.max_chunk).tolist():
            errors.setdefault(
                i, CellarError(Reason.TOO_LARGE, f"the chunk is {lengths[i]} long; {core.max_chunk} is the limit")
            )
        inputs = self.content.array(data, int(length.sum()))
        if not (length == 0).any():
            for i, error in self.content.bad_rows(inputs, length):
                errors.setdefault(i, error)
        digest = digests(data, length, self.content.unit_bytes)
        if end.any():
            digest[end] = mix(digest[end] + np.uint64(1))
        accepted = table.accepted[slot]
        odd = (start != accepted) | (length == 0) if self.content.is_text else start != accepted
        for i in np.flatnonzero(odd).tolist():
            if i not in errors and (start[i] != accepted[i] or self._is_repeated_end(slot[i], start[i], digest[i])):
                request = requests[frames[i]]
                error = self._replay(request, rows[i], int(slot[i]), int(start[i]), lengths[i], int(digest[i]))
                errors[i] = error or _REPLAYED
        full = table.in_flight[slot] >= core.config.max_chunks_in_flight
        for i in np.flatnonzero(full).tolist():
            errors.setdefault(
                i,
                CellarError(
                    Reason.OVERLOADED,
                    f"the session has {core.config.max_chunks_in_flight} chunks in flight",
                    retry_after_ms=20,
                ),
            )
        left = np.setdiff1d(np.arange(count), list(errors)) if errors else np.arange(count)
        for i in left[work.num_free :].tolist():
            errors[i] = core.overloaded()
        left = left[: work.num_free]
        if errors:
            self._refuse_rows(requests, frames, rows, errors)
        if not len(left):
            return
        taken = work.take(len(left))
        numbers = self._number + 1 + np.arange(len(requests))
        self._number += len(requests)
        for number, request in zip(numbers.tolist(), requests, strict=True):
            self._requests[number] = request
            self._live[number] = 0
        for place, live in zip(*(a.tolist() for a in np.unique(owner[left], return_counts=True)), strict=True):
            self._live[int(numbers[place])] = live
        for number in numbers.tolist():
            if not self._live[number]:
                del self._requests[number], self._live[number]
        slots = slot[left]
        work.kind[taken] = Kind.CHUNK
        work.slot[taken] = slots
        work.lot[taken] = work.add_lot(inputs, len(left))
        work.offset[taken] = (np.cumsum(length) - length)[left]
        work.steps[taken] = work.length[taken] = length[left]
        work.start[taken] = start[left]
        work.owner[taken] = numbers[owner[left]]
        work.row[taken] = np.array(rows)[left]
        work.stream[taken] = stream[left]
        work.handle[taken] = handle[left]
        work.digest[taken] = digest[left]
        work.ends[taken] = end[left]
        work.deadline[taken] = np.inf
        work.is_bulk[taken] = False
        if has_timeouts or has_bulk:
            timeouts: list[int] = []
            priorities: list[int] = []
            for request in requests:
                n = len(request.frame.handles)
                timeouts.extend(_column(request.frame.timeouts_ms, n, 0))
                priorities.extend(_column(request.frame.priorities, n, 0))
            timeout = np.array(timeouts, np.float64)[left]
            work.deadline[taken] = np.where(timeout > 0, now + timeout / 1000, np.inf)
            work.is_bulk[taken] = np.array(priorities)[left] == Priority.BULK
        table.accepted[slots] += length[left]
        table.in_flight[slots] += 1
        idle = table.head[slots] < 0
        table.head[slots[idle]] = taken[idle]
        work.next[table.tail[slots[~idle]]] = taken[~idle]
        table.tail[slots] = taken
        self.activate(taken[idle], now)

    def _is_repeated_end(self, slot: int, start: int, digest: int) -> bool:
        """A chunk without bytes that only ends the text, sent again: position alone cannot tell."""
        found = self.core.answers.find(int(slot), int(start), 0, int(digest))
        return isinstance(found, np.ndarray)

    def _replay(
        self, request: FrameRequest, row: int, slot: int, start: int, length: int, digest: int
    ) -> CellarError | None:
        """A chunk that does not start where the session expects one: its stored answer, or the reason it has none."""
        core, table, work = self.core, self.core.table, self.core.work
        expected = int(table.accepted[slot])
        if start > expected:
            return CellarError(
                Reason.POSITION_GAP,
                f"the chunk starts at {start}; the session expects {expected}",
                expected_position=expected,
            )
        w = int(table.head[slot])
        while w >= 0:
            if int(work.start[w]) == start and int(work.length[w]) == length and int(work.digest[w]) == digest:
                self._also.setdefault(w, []).append((request, row))
                return None
            w = int(work.next[w])
        found = core.answers.find(slot, start, length, digest)
        if isinstance(found, np.ndarray):
            core.counts.chunks_replayed += 1
            frame = request.frame
            core.replies.append(
                AnswerReply(
                    request.to,
                    [frame.frame_id],
                    [frame.handles[row]],
                    [start],
                    [start + length],
                    [len(found)],
                    found,
                )
            )
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
        """Chunks whose turn in their session has come [n]: ready, or (text) read first."""
        if not self.content.is_text:
            self.core.scheduler.add(rows)
            return
        core, work = self.core, self.core.work
        codec = core.model.text
        assert codec is not None
        ready: list[int] = []
        ids: list[np.ndarray] = []
        for w in rows.tolist():
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
        core, table, work = self.core, self.core.table, self.core.work
        slots, emissions = work.slot[rows], work.steps[rows]
        table.state[slots] = state
        table.position[slots] += work.length[rows]
        table.in_flight[slots] -= 1
        table.last_use[slots] = now
        if self.content.is_text:
            for w, slot in zip(rows.tolist(), slots.tolist(), strict=True):
                tail = self._tails.pop(w)
                if tail:
                    table.held[slot] = tail
                else:
                    table.held.pop(slot, None)
        if len(outputs) == len(rows) and (emissions == 1).all():
            core.answers.store_single(slots, work.start[rows], work.length[rows], work.digest[rows], outputs)
        else:
            ends = np.cumsum(emissions)
            for w, slot, end, n in zip(rows.tolist(), slots.tolist(), ends.tolist(), emissions.tolist(), strict=True):
                core.answers.store(
                    slot, int(work.start[w]), int(work.length[w]), int(work.digest[w]), outputs[end - n : end]
                )
        core.counts.chunks += len(rows)
        self._reply(rows, table.position[slots], emissions, outputs)
        following = work.next[rows]
        table.head[slots] = following
        table.tail[slots[following < 0]] = -1
        self._forget(rows)
        if (following >= 0).any():
            self.activate(following[following >= 0], now)

    def _reply(self, rows: np.ndarray, positions: np.ndarray, emissions: np.ndarray, outputs: np.ndarray) -> None:
        """One answer for each stream that has rows [n] among these."""
        work, replies = self.core.work, self.core.replies
        streams = work.stream[rows]
        ends = np.cumsum(emissions)
        if (streams != streams[0]).any():
            order = np.argsort(streams, kind="stable")
            cuts = np.flatnonzero(np.diff(streams[order])) + 1
            if (emissions == emissions[0]).all():
                packed = outputs.reshape(len(rows), -1, *outputs.shape[1:])[order].reshape(outputs.shape)
            else:
                packed = np.concatenate([outputs[ends[i] - emissions[i] : ends[i]] for i in order.tolist()])
            rows, positions, emissions, outputs = rows[order], positions[order], emissions[order], packed
            ends = np.cumsum(emissions)
            bounds = [0, *cuts.tolist(), len(rows)]
        else:
            bounds = [0, len(rows)]
        requests = self._requests
        owners = work.owner[rows].tolist()
        handles, starts = work.handle[rows].tolist(), work.start[rows].tolist()
        position, counts, at = positions.tolist(), emissions.tolist(), [0, *ends.tolist()]
        for low, high in pairwise(bounds):
            replies.append(
                AnswerReply(
                    requests[owners[low]].to,
                    [requests[number].frame.frame_id for number in owners[low:high]],
                    handles[low:high],
                    starts[low:high],
                    position[low:high],
                    counts[low:high],
                    outputs[at[low] : at[high]],
                )
            )
        if self._also:
            for i, w in enumerate(rows.tolist()):
                for request, row in self._also.pop(w, ()):
                    self.core.counts.chunks_replayed += 1
                    replies.append(
                        AnswerReply(
                            request.to,
                            [request.frame.frame_id],
                            [request.frame.handles[row]],
                            [starts[i]],
                            [position[i]],
                            [counts[i]],
                            outputs[at[i] : at[i + 1]],
                        )
                    )

    def fail(self, rows: np.ndarray, error: CellarError, now: float) -> None:
        """Chunks that end uncommitted, and with each the chunks of its session that wait behind it."""
        core, table, work = self.core, self.core.table, self.core.work
        for w in rows.tolist():
            slot = int(work.slot[w])
            position = int(table.position[slot])
            reason = error
            while w >= 0:
                core.counts.chunks_failed += 1
                for request, row in [self._of(w), *self._also.pop(w, ())]:
                    self._refuse(request, [row], [reason])
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

    def _of(self, w: int) -> tuple[FrameRequest, int]:
        return self._requests[int(self.core.work.owner[w])], int(self.core.work.row[w])

    def _forget(self, rows: np.ndarray) -> None:
        """Frees rows of work, and the frames that have none left."""
        numbers, counts = np.unique(self.core.work.owner[rows], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self._live[number] -= count
            if not self._live[number]:
                del self._requests[number], self._live[number]
        self.core.work.give_back(rows)

    def _refuse_rows(
        self, requests: list[FrameRequest], frames: list[int], rows: list[int], errors: dict[int, CellarError]
    ) -> None:
        by_frame: dict[int, list[int]] = {}
        for i, error in errors.items():
            if error is not _REPLAYED:
                by_frame.setdefault(frames[i], []).append(i)
        for place, indices in by_frame.items():
            self.core.counts.chunks_failed += len(indices)
            self._refuse(requests[place], [rows[i] for i in indices], [errors[i] for i in indices])

    def _refuse(self, request: FrameRequest, rows: list[int], errors: list[CellarError]) -> None:
        """An answer of errors only: the given rows of one frame."""
        frame, table = request.frame, self.core.table
        handles = [frame.handles[row] for row in rows]
        slots, valid = table.resolve(np.array(handles, np.uint64), request.stream)
        positions = np.where(valid, table.position[slots], 0).tolist()
        self.core.replies.append(
            AnswerReply(
                request.to,
                [frame.frame_id] * len(rows),
                handles,
                [frame.positions[row] for row in rows],
                positions,
                [0] * len(rows),
                self.core.no_outputs(),
                list(enumerate(errors)),
            )
        )


_REPLAYED = CellarError(Reason.REASON_UNSPECIFIED, "answered from the store")


def _column(values: object, n: int, default: object) -> list:
    """A column that holds none, one or N values, as N of them."""
    count = len(values)  # type: ignore[arg-type]
    if count == n:
        return list(values)  # type: ignore[call-overload]
    return [values[0] if count else default] * n  # type: ignore[index]
