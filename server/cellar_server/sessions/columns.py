"""What frames bring, as columns: the rows of several frames behind one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from cellar_proto.v1.inference_pb2 import Priority
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.sessions.content import Content
from cellar_server.sessions.digest import digests, mix
from cellar_server.sessions.messages import FrameRequest

# Rows from which a frame is read on the thread that received it, beside a run, and not by the engine between two.
LARGE = 32
# Positions beyond this are cut to it: no session gets there, and they fit int64.
_FAR = 1 << 62


class Chunks:
    """What one frame holds, its columns checked against each other. lengths, ends: None for the default everywhere.

    Raises CellarError EMPTY_INPUT, TOO_LARGE or INVALID_REQUEST where the columns do not fit together.
    """

    __slots__ = ("data", "ends", "handles", "is_timed", "lengths", "request", "starts")

    def __init__(self, request: FrameRequest, max_rows: int) -> None:
        frame = request.frame
        self.request = request
        self.handles: list[int] = frame.handles[:]
        self.starts: list[int] = frame.positions[:]
        n = len(self.handles)
        if not n:
            raise CellarError(Reason.EMPTY_INPUT, "the frame names no session")
        if n > max_rows:
            raise CellarError(Reason.TOO_LARGE, f"the frame has {n} rows; {max_rows} is the limit")
        if len(self.starts) != n:
            raise CellarError(Reason.INVALID_REQUEST, f"the frame has {n} handles and {len(self.starts)} positions")
        self.lengths: list[int] | None = _column("lengths", frame.lengths, n)
        self.ends: list[bool] | None = _column("ends", frame.ends, n)
        self.is_timed = bool(frame.timeouts_ms or frame.priorities)
        if self.is_timed:
            _column("timeouts_ms", frame.timeouts_ms, n)
            _column("priorities", frame.priorities, n)
        self.data: bytes = frame.inputs.data if request.data is None else request.data

    @property
    def total(self) -> int:
        """Steps (bytes, for text) that the frame should hold."""
        return len(self.handles) if self.lengths is None else sum(self.lengths)


def _column(name: str, values: Any, n: int) -> list | None:
    """A column of none (None), one or N values as N of them."""
    if not values:
        return None
    if len(values) == n:
        return values[:]
    if len(values) != 1:
        raise CellarError(Reason.INVALID_REQUEST, f"the frame has {n} handles and {len(values)} {name}")
    return [values[0]] * n


@dataclass(slots=True)
class Columns:
    """Rows of several frames behind one another. All arrays are [n].

    frames; counts: rows of each; owner: which of the frames a row is of; row: its place there; stream: which stream
    the frame came on; handle; start, length: in position units; end: the sequence ends here (None: nowhere); inputs:
    the packed units [sum(length), ...]; offset: where a row's begin; digest of its content; errors: of the rows that
    no session would take, by row.
    """

    frames: list[Chunks]
    counts: list[int]
    owner: np.ndarray
    row: np.ndarray
    stream: np.ndarray | int
    handle: np.ndarray
    start: np.ndarray
    length: np.ndarray
    end: np.ndarray | None
    inputs: np.ndarray
    offset: np.ndarray
    digest: np.ndarray
    errors: dict[int, CellarError]

    @staticmethod
    def of(frames: list[Chunks], content: Content, max_chunk: int, *, are_distinct: bool) -> Columns:
        """The rows of some frames; are_distinct: no session is named twice."""
        first = frames[0]
        counts = [len(first.handles)]
        handles, starts = first.handles, first.starts
        stream: np.ndarray | int = first.request.stream
        data = first.data
        owner: np.ndarray
        row: np.ndarray
        length: np.ndarray | None = None
        end: np.ndarray | None = None
        if len(frames) == 1:
            n = counts[0]
            owner, row = np.zeros(n, np.int64), np.arange(n)
            if first.lengths is not None:
                length = np.array(first.lengths, np.int64)
            if first.ends is not None:
                end = np.array(first.ends, np.bool_)
        else:
            counts = [len(frame.handles) for frame in frames]
            handles = [handle for frame in frames for handle in frame.handles]
            starts = [start for frame in frames for start in frame.starts]
            n = len(handles)
            owner, row = np.arange(n), np.zeros(n, np.int64)
            if n != len(frames):
                owner = np.repeat(np.arange(len(frames)), counts)
                row = np.arange(n) - (np.cumsum(counts) - counts)[owner]
            stream = np.array([frame.request.stream for frame in frames], np.int64)[owner]
            data = b"".join([frame.data for frame in frames])
            if any(frame.lengths is not None for frame in frames):
                length = np.array([k for f, m in zip(frames, counts, strict=True) for k in f.lengths or [1] * m])
            if any(frame.ends is not None for frame in frames):
                end = np.array([e for f, m in zip(frames, counts, strict=True) for e in f.ends or [False] * m])
        total = n
        if length is None:
            length, offset = np.ones(n, np.int64), np.arange(n)
        else:
            ends = np.cumsum(length)
            offset, total = ends - length, int(ends[-1])
        digest = digests(data, length, content.unit_bytes)
        if end is not None:
            digest[end] = mix(digest[end] + np.uint64(1))
        columns = Columns(
            frames,
            counts,
            owner,
            row,
            stream,
            np.array(handles, np.uint64),
            positions(starts),
            length,
            end,
            content.array(data, total),
            offset,
            digest,
            {},
        )
        if not are_distinct:
            columns._refuse_repeated()
        columns.refuse_unfit(content, max_chunk)
        return columns

    def _refuse_repeated(self) -> None:
        distinct, times = np.unique(self.handle, return_counts=True)
        for i in np.flatnonzero(np.isin(self.handle, distinct[times > 1])).tolist():
            self.errors[i] = CellarError(Reason.DUPLICATE_SESSION, "the frame names this session twice")

    def refuse_unfit(self, content: Content, max_chunk: int) -> None:
        """Puts rows that are empty, too long or hold what the model cannot take into `errors`."""
        length, errors = self.length, self.errors
        filled = None
        if length.min() == 0:
            empty = length == 0
            filled = np.flatnonzero(~empty)
            can_be_empty = self.end if content.is_coded and self.end is not None else ~empty
            for i in np.flatnonzero(empty & ~can_be_empty).tolist():
                errors.setdefault(i, CellarError(Reason.EMPTY_INPUT, "the chunk has no steps"))
        if length.max() > max_chunk:
            for i in np.flatnonzero(length > max_chunk).tolist():
                what = f"the chunk is {length[i]} long; {max_chunk} is the limit"
                errors.setdefault(i, CellarError(Reason.TOO_LARGE, what))
        for i, error in content.bad_rows(self.inputs, length if filled is None else length[filled]):
            errors.setdefault(i if filled is None else int(filled[i]), error)

    @property
    def is_timed(self) -> bool:
        """Some frame has timeouts or priorities."""
        return any(frame.is_timed for frame in self.frames)

    def limits(self, now: float) -> tuple[np.ndarray, np.ndarray]:
        """Deadline of each row on the engine's clock (inf for none) and whether it is bulk: [n]."""
        since: list[float] = []
        timeouts: list[int] = []
        priorities: list[int] = []
        for chunks, n in zip(self.frames, self.counts, strict=True):
            frame = chunks.request.frame
            since += [chunks.request.arrived_s or now] * n
            timeouts += _column("timeouts_ms", frame.timeouts_ms, n) or [0] * n
            priorities += _column("priorities", frame.priorities, n) or [Priority.INTERACTIVE] * n
        timeout = np.array(timeouts, np.float64)
        deadline = np.where(timeout > 0, np.array(since) + timeout / 1000, np.inf)
        own = self.frames[0].request.deadline
        return deadline if own is None else np.minimum(deadline, own), np.array(priorities) == Priority.BULK


def positions(values: list[int] | np.ndarray) -> np.ndarray:
    """Positions int64 [n]: those beyond what any session reaches are cut."""
    try:
        return np.minimum(np.array(values, np.int64), _FAR)
    except OverflowError:
        return np.minimum(np.array(values, np.uint64), np.uint64(_FAR)).astype(np.int64)
