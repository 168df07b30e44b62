"""Whole sequences without a session: each a row of work from the start state, gone when answered."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from cellar_proto.v1.manifest_pb2 import Mode
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.scheduler.work import Kind
from cellar_server.sessions.content import Content
from cellar_server.sessions.core import Core
from cellar_server.sessions.messages import PredictReply, PredictRequest


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

    def admit(self, request: PredictRequest) -> None:
        """Queues the sequences of one call; refuses those that cannot run, or the whole call."""
        core, work = self.core, self.core.work
        try:
            core.check_open()
            if core.only_generates:
                raise CellarError(Reason.UNSUPPORTED, "the model generates: call Generate")
            if not request.lengths:
                raise CellarError(Reason.EMPTY_INPUT, "the call holds no sequence")
            total = sum(request.lengths)
            self.content.check(request.dtype, request.shape, len(request.data), total)
            if len(request.lengths) > work.capacity:
                raise CellarError(Reason.TOO_LARGE, f"a call holds at most {work.capacity} sequences")
            core.check_room(len(request.lengths), len(request.data))
            core.check_time((request.deadline_s or np.inf) - core.clock(), request.caller)
            if request.is_bulk:
                core.check_new(request.caller, len(request.lengths))
        except CellarError as error:
            core.counts.refuse(error.reason)
            core.replies.append(PredictReply(request.to, [], None, error=error))
            return
        n = len(request.lengths)
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
        work.arrived[rows] = core.clock()
        work.state[rows] = core.model.runtime.start
        work.lot[rows] = work.add_lot(values, len(good))
        work.offset[rows] = (np.cumsum(length) - length)[good]
        work.steps[rows] = length[good]
        work.owner[rows] = self._number
        work.row[rows] = good
        work.stream[rows] = -1
        work.caller[rows] = request.caller
        work.keeps[rows] = request.all_emissions
        work.limit(rows, request.deadline_s or np.inf, request.is_bulk)
        core.scheduler.add(rows)

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
        return np.concatenate(made), counts

    def finish(self, rows: np.ndarray, last: np.ndarray, outputs: np.ndarray) -> None:
        """Sequences whose last run is over: rows [n]; last: their last emissions float32 [n, ...]; outputs: every
        emission of those rows that keep all, packed."""
        work = self.core.work
        at = 0
        for i, w in enumerate(rows.tolist()):
            call = self._calls[int(work.owner[w])]
            if work.keeps[w]:
                n = int(work.steps[w])
                call.pieces[int(work.row[w])] = outputs[at : at + n]
                at += n
            else:
                call.pieces[int(work.row[w])] = last[i : i + 1]
        self._end(rows)

    def fail(self, rows: np.ndarray, error: CellarError) -> None:
        """Sequences that end without an answer of their own: rows [n]."""
        work = self.core.work
        for w in rows.tolist():
            self._calls[int(work.owner[w])].errors.append((int(work.row[w]), error))
        self._end(rows)

    def _end(self, rows: np.ndarray) -> None:
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
                np.concatenate(pieces) if pieces else self.core.no_outputs(),
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
