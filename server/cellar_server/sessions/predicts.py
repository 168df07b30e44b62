"""Whole sequences without a session: each a row of work from the start state, gone when answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from cellar_proto.v1.manifest_pb2 import Mode
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.scheduler.work import Kind
from cellar_server.sessions.content import Content
from cellar_server.sessions.core import Core
from cellar_server.sessions.messages import PredictReply, PredictRequest, PredictRows, RowsBack, RowsRefused, RowsReply
from cellar_server.sessions.selection import chosen, in_time, joined


@dataclass(slots=True)
class _Predict:
    """One call: pieces[i] holds the emissions of sequence i once it is done."""

    request: PredictRequest
    live: int
    pieces: list[np.ndarray | None]
    rows: np.ndarray
    errors: list[tuple[int, CellarError]] = field(default_factory=list)


class Predicts:
    """Takes calls in, and answers each when its last sequence is done."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.content = Content(core.model)
        self._calls: dict[int, _Predict] = {}
        self._number = 0
        self._to: Any = None  # whom rows that came one a call are answered to
        self._steps_per_unit = 1.0  # that a codec made of text or sound, lately

    def admit(self, requests: list[PredictRequest], now: float) -> None:
        """Queues the sequences of calls; refuses those that cannot run, or the whole call."""
        core = self.core
        sound: list[PredictRequest] = []
        for request in requests:
            try:
                self._check(request)
                sound.append(request)
            except CellarError as error:
                self._refuse_call(request, error)
        for request, wait_s in zip(sound, self._waits_s(sound, now), strict=True):
            try:
                core.check_room(len(request.lengths), len(request.data))
                core.check_wait((request.deadline_s or np.inf) - now, wait_s)
                if request.is_bulk:
                    core.check_new(request.caller, len(request.lengths))
                self._take_in(request, now)
            except CellarError as error:
                self._refuse_call(request, error)

    def _check(self, request: PredictRequest) -> None:
        """CellarError for a call that cannot run, however little waits."""
        core = self.core
        core.check_open()
        if core.only_generates:
            raise CellarError(Reason.UNSUPPORTED, "the model generates: call Generate")
        if not request.lengths:
            raise CellarError(Reason.EMPTY_INPUT, "the call holds no sequence")
        self.content.check(request.dtype, request.shape, len(request.data), sum(request.lengths))
        if len(request.lengths) > core.work.capacity:
            raise CellarError(Reason.TOO_LARGE, f"a call holds at most {core.work.capacity} sequences")

    def _waits_s(self, requests: list[PredictRequest], now: float) -> list[float]:
        """Seconds in which each call is expected to be over."""
        waits: np.ndarray | None = None
        if any(request.deadline_s for request in requests):
            callers = np.array([request.caller for request in requests])
            deadlines = np.array([request.deadline_s or np.inf for request in requests])
            steps, longest = (
                np.maximum(1, np.array([of(request.lengths) for request in requests]) * self._steps_per_unit)
                for of in (sum, max)
            )
            waits = self.core.pressure.waits_s(callers, deadlines, now, steps, longest)
        return [0.0] * len(requests) if waits is None else waits.tolist()

    def _refuse_call(self, request: PredictRequest, error: CellarError) -> None:
        self.core.counts.refuse(error.reason)
        self.core.replies.append(PredictReply(request.to, [], None, error=error))

    def _take_in(self, request: PredictRequest, now: float) -> None:
        """Queues the sequences of a sound call for which there is room and time."""
        core, work = self.core, self.core.work
        n, total = len(request.lengths), sum(request.lengths)
        core.counts.copy("read", len(request.data))
        length = np.array(request.lengths, np.int64)
        values = self.content.array(request.data, total)
        errors: dict[int, CellarError] = {
            i: CellarError(Reason.EMPTY_INPUT, "the sequence is empty") for i in np.flatnonzero(length == 0).tolist()
        }
        if core.model.manifest.mode == Mode.ONE_TO_ONE:
            for i in np.flatnonzero(length > 1).tolist():
                errors[i] = CellarError(
                    Reason.SHAPE_MISMATCH, f"a one-to-one model takes one step; the sequence has {length[i]}"
                )
        if self.content.is_coded:
            values, length = self._read(values, length, errors)
        elif total:
            filled = np.flatnonzero(length)
            for i, error in self.content.bad_rows(values, length[filled]):
                errors.setdefault(int(filled[i]), error)
        good = np.array([i for i in range(n) if i not in errors], np.int64)
        call = _Predict(request, len(good), [None] * n, good, list(errors.items()))
        if not len(good):
            self._answer(call)
            return
        self._number += 1
        self._calls[self._number] = call
        core.time(Kind.SEQUENCE, self._number, request.timing)
        rows = call.rows = work.take(len(good))
        work.kind[rows] = Kind.SEQUENCE
        work.arrived[rows] = now
        work.state[rows] = core.model.runtime.start
        work.lot[rows] = work.add_lot(values, len(good))
        work.offset[rows] = (np.cumsum(length) - length)[good]
        work.steps[rows] = length[good]
        work.owner[rows] = self._number
        work.row[rows] = good
        work.stream[rows] = -1
        work.call[rows] = 0
        work.caller[rows] = request.caller
        work.keeps[rows] = request.all_emissions
        work.limit(rows, request.deadline_s or np.inf, request.is_bulk)
        core.scheduler.add(rows)

    def admit_rows(self, requests: list[PredictRows], now: float) -> None:
        """Queues sequences that came one a call; refuses those for which there is no room or no time, and gives those
        back about which something is odd."""
        self.core.counts.copy("read", sum(rows.data.nbytes for rows in requests))
        for _, alike in groupby(requests, key=lambda rows: rows.rest):
            rows = joined(list(alike), self.core.counts)
            self._to = rows.to
            try:
                self.core.check_open()
            except CellarError as error:
                self._refuse(rows, np.arange(len(rows.call)), error)
                continue
            rows = self._fit(rows)
            rows = in_time(self.core, rows, rows.length, now, self._refuse) if len(rows.call) else rows
            rows = self._with_room(rows)
            if len(rows.call):
                self._queue(rows, now)

    def _refuse(self, rows: PredictRows, places: np.ndarray, error: CellarError) -> None:
        """Ends the calls at `places` [n] with an error."""
        self.core.counts.refuse(error.reason, len(places))
        self._answer_error(rows.to, rows.call[places], error, ends_calls=True)

    def refuse_rows(self, rows: PredictRows, error: CellarError) -> None:
        """Answers sequences that failed with their error."""
        self.core.counts.refuse(error.reason, len(rows.call))
        self._answer_error(rows.to, rows.call, error, ends_calls=False)

    def _answer_error(self, to: Any, calls: np.ndarray, error: CellarError, *, ends_calls: bool) -> None:
        nothing = np.zeros(len(calls), np.int64)
        shape, version = self.core.output_shape, np.full(len(calls), self.core.model.manifest.version)
        names = nothing.view(np.uint64)
        reply = RowsRefused(to, calls, names, names, nothing, version, shape, error, ends_calls)
        self.core.replies.append(reply)

    def _fit(self, rows: PredictRows) -> PredictRows:
        """Sequences that are what the model takes, with their lengths filled in; the others go back."""
        content, mode = self.content, self.core.model.manifest.mode
        size, given = rows.size, rows.frame.inputs
        whole = np.where(rows.first_axis < 0, size // content.unit_bytes, rows.first_axis)
        length = rows.length = np.where(rows.length < 0, whole, rows.length)
        is_fit = (length > 0) & (length * content.unit_bytes == size)
        has_shape = rows.first_axis >= 0
        if has_shape.any():
            is_fit &= ~has_shape | ((rows.first_axis == length) & (tuple(given.shape) == content.unit_shape))
        elif given.shape:
            is_fit[:] = False
        if mode == Mode.ONE_TO_ONE:
            is_fit &= length == 1
        if mode == Mode.ONE_TO_MANY or (given.dtype and given.dtype != content.wire_dtype):
            is_fit[:] = False
        if is_fit.all():
            values = content.array(rows.data, int(length.sum()))
            is_fit[[i for i, _ in content.bad_rows(values, length)]] = False
        if is_fit.all():
            return rows
        self.core.replies.append(RowsBack(rows.to, chosen(rows, np.flatnonzero(~is_fit), self.core.counts)))
        left = chosen(rows, np.flatnonzero(is_fit), self.core.counts)
        return self._fit(left) if len(left.call) else left

    def _with_room(self, rows: PredictRows) -> PredictRows:
        """The first of them, as many as the queue has room for; the others are refused."""
        core, n = self.core, len(rows.call)
        num_bytes = core.config.max_queue_bytes - core.work.num_lot_bytes
        fitting = min(n, core.work.num_free, int(np.searchsorted(np.cumsum(rows.size), num_bytes, side="right")))
        if fitting == n:
            return rows
        self._refuse(rows, np.arange(fitting, n), core.overloaded())
        return chosen(rows, np.arange(fitting), self.core.counts)

    def _queue(self, rows: PredictRows, now: float) -> None:
        core, work = self.core, self.core.work
        n, length = len(rows.call), rows.length
        taken = work.take(n)
        work.kind[taken] = Kind.SEQUENCE
        work.arrived[taken] = now
        work.state[taken] = core.model.runtime.start
        work.lot[taken] = work.add_lot(self.content.array(rows.data, int(length.sum())), n)
        work.offset[taken] = np.cumsum(length) - length
        work.steps[taken] = length
        work.stream[taken] = -1
        work.call[taken] = rows.call
        work.caller[taken] = rows.callers
        work.keeps[taken] = rows.all_emissions
        work.limit(taken, np.inf if rows.deadline is None else rows.deadline, False)
        core.scheduler.add(taken)

    def _read(
        self, raw: np.ndarray, length: np.ndarray, errors: dict[int, CellarError]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps [sum(steps), ...] and steps of each text or sound [N]; those that cannot be read go to `errors`."""
        codec = self.core.model.codec
        assert codec is not None
        made: list[np.ndarray] = [codec.take(b"", b"", True)[0]]
        counts = np.zeros(len(length), np.int64)
        end = 0
        for i, n in enumerate(length.tolist()):
            text = raw[end : end + n].tobytes()
            end += n
            if i in errors:
                continue
            try:
                taken, _ = codec.take(b"", text, True)
            except CellarError as error:
                errors[i] = error
                continue
            if not len(taken):
                errors[i] = CellarError(Reason.EMPTY_INPUT, codec.nothing)
                continue
            counts[i] = len(taken)
            made.append(taken)
            self._steps_per_unit += 0.1 * (len(taken) / n - self._steps_per_unit)
        return np.concatenate(made), counts

    def finish(self, rows: np.ndarray, last: np.ndarray, outputs: np.ndarray) -> None:
        """Sequences whose last run is over: rows [n]; last: their last emissions float32 [n, ...]; outputs: every
        emission of those rows that keep all, packed."""
        work = self.core.work
        keeps, is_row = work.keeps[rows], work.call[rows] > 0
        lengths = np.where(keeps, work.steps[rows], 1)
        if is_row.all() and keeps.all() | ~keeps.any():
            self._answer_rows(rows, lengths, outputs if keeps[0] else last)
            return
        ends = np.cumsum(np.where(keeps, lengths, 0)).tolist()
        pieces = [
            outputs[end - n : end] if keep else last[i : i + 1]
            for i, (keep, n, end) in enumerate(zip(keeps.tolist(), lengths.tolist(), ends, strict=True))
        ]
        if is_row.any():
            mine = np.flatnonzero(is_row)
            self._answer_rows(rows[mine], lengths[mine], self.core.pack([pieces[i] for i in mine.tolist()]))
        others = np.flatnonzero(~is_row)
        for i, w in zip(others.tolist(), rows[others].tolist(), strict=True):
            self._calls[int(work.owner[w])].pieces[int(work.row[w])] = pieces[i]
        self._end(rows[others])

    def _answer_rows(self, rows: np.ndarray, lengths: np.ndarray, outputs: np.ndarray) -> None:
        """Sequences that came one a call: rows [n]; lengths: emissions of each [n]; outputs: these, packed."""
        nothing, version = np.zeros(len(rows), np.uint64), np.full(len(rows), self.core.model.manifest.version)
        starts, calls = nothing.view(np.int64), self.core.work.call[rows]
        self.core.replies.append(
            RowsReply(self._to, nothing, nothing, starts, version, lengths, outputs, call=calls)  # type: ignore[arg-type]
        )
        self.core.work.give_back(rows)

    def fail(self, rows: np.ndarray, error: CellarError) -> None:
        """Sequences that end without an answer of their own: rows [n]."""
        work = self.core.work
        is_row = work.call[rows] > 0
        if is_row.any():
            mine, rows = rows[is_row], rows[~is_row]
            self.core.counts.refuse(error.reason, len(mine))
            self._answer_error(self._to, work.call[mine], error, ends_calls=False)
            work.give_back(mine)
        for w in rows.tolist():
            self._calls[int(work.owner[w])].errors.append((int(work.row[w]), error))
        self._end(rows)

    def _end(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        numbers, counts = np.unique(self.core.work.owner[rows], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            call = self._calls[number]
            call.live -= count
            if not call.live:
                del self._calls[number]
                self.core.timings.pop((Kind.SEQUENCE, number), None)
                self._answer(call)
        self.core.work.give_back(rows)

    def _answer(self, call: _Predict) -> None:
        pieces = [piece for piece in call.pieces if piece is not None]
        for _, error in call.errors:
            self.core.counts.refuse(error.reason)
        self.core.replies.append(
            PredictReply(
                call.request.to,
                [0 if piece is None else len(piece) for piece in call.pieces],
                self.core.pack(pieces),
                sorted(call.errors, key=lambda pair: pair[0]),
            )
        )

    def cancel(self, to: object) -> bool:
        """Drops the call of an asker that is gone; False where there is none."""
        work = self.core.work
        for number, call in self._calls.items():
            if call.request.to is to:
                rows = call.rows[(work.owner[call.rows] == number) & (work.kind[call.rows] == Kind.SEQUENCE)]
                rows = rows[np.isin(rows, self.core.scheduler.ready)]
                self.core.scheduler.remove(rows)
                if len(rows):
                    self.fail(rows, CellarError(Reason.CANCELLED, "the call was cancelled"))
                return True
        return False

    def cancel_rows(self, calls: np.ndarray) -> None:
        """Drops what waits of calls that are gone, by the transport's numbers [n]."""
        work, ready = self.core.work, self.core.scheduler.ready
        rows = ready[(work.kind[ready] == Kind.SEQUENCE) & np.isin(work.call[ready], calls)]
        if len(rows):
            self.core.scheduler.remove(rows)
            self.core.counts.refuse(Reason.CANCELLED, len(rows))
            work.give_back(rows)
