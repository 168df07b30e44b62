"""Rows of streams that are limited or traced: counted, refused and timed as the frames that they came in would be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from cellar_proto.v1.inference_pb2 import FrameError, StreamResponse

from cellar_server.engine import Engine
from cellar_server.errors import CellarError
from cellar_server.front.rations import Ration, Rations
from cellar_server.front.row_messages import frames
from cellar_server.sessions.messages import Rows
from cellar_server.sessions.selection import chosen
from cellar_server.sessions.table import engines_of

if TYPE_CHECKING:
    from cellar_server.front.traces import StreamTrace

# What the numbers of a frame of one row take at most, beside its inputs and what it has in common with others.
_MAX_NUMBERS_BYTES = 96


@dataclass(slots=True)
class _Stream:
    """One of those streams. in_flight: rows of it that are not answered."""

    ration: Ration | None
    trace: StreamTrace | None
    in_flight: int = 0
    is_closed: bool = False


class WatchedRows:
    """Looks at rows when they are taken and when they are answered; from any thread. Every row that it lets in is to be
    told of once by `answer`. take_back: has rows go the way of frames; write: sends a message of a call that answers
    one row."""

    def __init__(
        self, rations: Rations, take_back: Callable[[Rows], object], write: Callable[[int, bytes, int], object]
    ) -> None:
        self._rations = rations
        self._take_back = take_back
        self._write = write
        self._streams: dict[int, _Stream] = {}  # by their call
        self._lock = threading.Lock()

    def open(self, call: int, ration: Ration | None, trace: StreamTrace | None) -> None:
        """Rows of a call are to be looked at from now on."""
        if ration is not None or trace is not None:
            self._streams[call] = _Stream(ration, trace)

    def close(self, call: int) -> None:
        """The call is gone; rows of it may still be under way."""
        with self._lock:
            stream = self._streams.get(call)
            if stream is not None:
                stream.is_closed = True
                self._forget(call, stream)

    def _forget(self, call: int, stream: _Stream) -> None:
        if stream.is_closed and not stream.in_flight:
            del self._streams[call]

    def admit(self, rows: Rows, engine: Engine) -> Rows | None:
        """Those of an engine's rows that may go on, on its thread: the others are refused. Rows of another model's
        sessions go the way of frames, before they count here."""
        if not self._streams:
            return rows
        streams = [self._streams.get(call) for call in rows.call.tolist()]
        if not any(streams):
            return rows
        others = engines_of(rows.handle) != engine.number
        if others.any():
            self._take_back(chosen(rows, np.flatnonzero(others)))
            rows, streams = _kept(rows, streams, np.flatnonzero(~others))
        with self._lock:  # the last of those before them may be answered just now
            for call, stream in zip(rows.call.tolist(), streams, strict=True):
                if stream is not None:
                    stream.in_flight += 1
                    self._streams[call] = stream
        errors = self._refusals(rows, streams, engine)
        if errors:
            self._refuse(rows, errors, engine)
            left = np.setdiff1d(np.arange(len(streams)), list(errors))
            rows, streams = _kept(rows, streams, left)
        if not streams:
            return None
        timings = np.full(len(streams), None, object)
        for i, stream in enumerate(streams):
            if stream is not None and stream.trace is not None:
                timings[i] = stream.trace.begin(int(rows.frame_id[i]), engine.name, 1)
        rows.timings = timings if any(timings) else None
        return rows

    def _refusals(self, rows: Rows, streams: Sequence[_Stream | None], engine: Engine) -> dict[int, CellarError]:
        """Why rows may not come, by place; what the others take of their rations is taken."""
        rations = [stream.ration if stream is not None else None for stream in streams]
        if not any(rations):
            return {}
        errors: dict[int, CellarError] = {}
        if rows.deadline is not None:
            left = (rows.deadline - engine.now()).tolist()
            for i, caller in enumerate(rows.callers.tolist()):
                if rations[i] is not None and 0 < left[i] < float("inf"):
                    error = engine.refusal_in(left[i], caller)
                    if error is not None:
                        errors[i], rations[i] = error, None
        steps = np.where(rows.length < 0, 1, rows.length).tolist()
        return errors | self._rations.take_rows(rations, steps, _sizes(rows, rations))

    def _refuse(self, rows: Rows, errors: dict[int, CellarError], engine: Engine) -> None:
        for i, error in errors.items():
            engine.count_refused(error, 1)
            failed = FrameError(frame_id=int(rows.frame_id[i]), error=error.to_proto())
            call = int(rows.call[i])
            with self._lock:
                self._leave(call)
            self._write(call, StreamResponse(frame_error=failed).SerializeToString(), 1)

    def _leave(self, call: int) -> _Stream | None:
        """A row of a call is under way no longer; whose it was."""
        stream = self._streams.get(call)
        if stream is not None:
            stream.in_flight -= 1
            self._forget(call, stream)
        return stream

    def answer(self, calls: Sequence[int], frame_ids: Sequence[int], *, has_failed: bool = False) -> None:
        """Rows are about to be answered: each gives back its place."""
        if not self._streams:
            return
        given: dict[Ration, int] = {}
        traced: list[tuple[StreamTrace, int]] = []
        with self._lock:
            for call, frame_id in zip(calls, frame_ids, strict=True):
                stream = self._leave(call)
                if stream is None:
                    continue
                if stream.ration is not None:
                    given[stream.ration] = given.get(stream.ration, 0) + 1
                if stream.trace is not None:
                    traced.append((stream.trace, frame_id))
        for ration, count in given.items():
            ration.give_back(count)
        for trace, frame_id in traced:
            trace.answer(frame_id, has_failed=has_failed)


def _kept(rows: Rows, streams: Sequence[_Stream | None], places: np.ndarray) -> tuple[Rows, list[_Stream | None]]:
    return chosen(rows, places), [streams[i] for i in places.tolist()]


def _sizes(rows: Rows, rations: Sequence[Ration | None]) -> dict[int, int]:
    """Bytes of the frames that rows came in, by place, where one may be over its ration's limit."""
    sizes = {}
    most = (rows.size + (len(rows.rest) + _MAX_NUMBERS_BYTES)).tolist()
    for i, ration in enumerate(rations):
        if ration is not None and 0 < ration.max_message_bytes < most[i]:
            (frame,) = frames(chosen(rows, np.array([i])))
            sizes[i] = frame.ByteSize()
    return sizes
