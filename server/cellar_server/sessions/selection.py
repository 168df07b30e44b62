"""Rows that came one a message, as a whole: parts of them, several as one, those that are in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.sessions.core import LATE, WAIT_PART, Core, Counts
from cellar_server.sessions.messages import PredictRows, Rows, RowsRefused

_COLUMNS = ("call", "stream", "frame_id", "handle", "position", "length", "first_axis", "size")


def in_time(
    core: Core, rows: Any, steps: np.ndarray, now: float, refuse: Callable[[Any, np.ndarray, CellarError], None]
) -> Any:
    """Rows without those whose time is over, or would be before their answer: these are refused, many at once. steps:
    of each row [n]."""
    if rows.deadline is None:
        return rows
    left = rows.deadline - now
    over = left <= 0
    late = over
    wait = core.pressure.waits_s(rows.callers, rows.deadline, now, steps)
    if wait is not None:
        late = over | (wait > WAIT_PART * left)
    if not late.any():
        return rows
    if over.any():
        refuse(rows, np.flatnonzero(over), CellarError(Reason.DEADLINE_EXCEEDED, LATE))
    if wait is not None and not (late == over).all():
        places = np.flatnonzero(late & ~over)
        # as in `check_time`, from where the first of them would stand: what is refused waits for nothing; those
        # that may come again at about the same time have one error
        first = wait[places].min()
        delay = np.minimum(first - WAIT_PART * left[places], first / 2)
        step = np.floor(2 * np.log2(np.maximum(delay, 1e-3)))
        for each in np.unique(step).tolist():
            error = core.overloaded(2 ** (each / 2))
            refuse(rows, places[step == each], error)
    return chosen(rows, np.flatnonzero(~late), core.counts)


def chosen(rows: Any, places: np.ndarray, counts: Counts | None = None) -> Any:
    """The rows at `places` alone. counts: where their bytes, which are copied, are to be counted."""
    size = rows.size
    if len(places) == len(size) and (places == np.arange(len(size))).all():
        return rows
    if (size == size[0]).all():
        data = rows.data.reshape(len(size), -1)[places].reshape(-1)
    else:
        ends = np.cumsum(size)
        pieces = [rows.data[ends[i] - size[i] : ends[i]] for i in places.tolist()]
        data = np.concatenate(pieces) if pieces else rows.data[:0]
    if counts is not None:
        counts.copy("pick", data.nbytes)
    return _picked(rows, places, [] if rows.ids is None else [rows.ids[i] for i in places.tolist()], data)


def timed(rows: Rows) -> Iterator[Rows]:
    """The rows in their order, each one that is traced by itself: what happens to it is that of no other."""
    n = len(rows.call)
    if rows.timings is None:
        if n:
            yield rows
        return
    traced = [i for i, timing in enumerate(rows.timings) if timing is not None]
    cuts = sorted({0, n, *traced, *(i + 1 for i in traced)})
    for first, end in pairwise(cuts):
        each = chosen(rows, np.arange(first, end))
        yield replace(each, timing=rows.timings[first], timings=None)


def halves(rows: Any, count: int) -> tuple[Any, Any]:
    """The first `count` rows and the others, all of one size: their bytes stay where they are."""
    cut = count * int(rows.size[0])
    ids = rows.ids or []
    first = _picked(rows, slice(count), ids[:count], rows.data[:cut])
    return first, _picked(rows, slice(count, None), ids[count:], rows.data[cut:])


def _picked(rows: Any, places: np.ndarray | slice, ids: list[str], data: np.ndarray) -> Any:
    """The rows at `places`, with their ids where they have some and their bytes."""
    return replace(
        rows,
        **{name: getattr(rows, name)[places] for name in _COLUMNS},
        data=data,
        ids=None if rows.ids is None else ids,
        deadline=None if rows.deadline is None else rows.deadline[places],
        caller=None if rows.caller is None else rows.caller[places],
        timings=None if rows.timings is None else rows.timings[places],
    )


def joined(requests: list[Any], counts: Counts) -> Any:
    """Rows that have the same in common, as one. counts: where their bytes are, if they are copied."""
    first = requests[0]
    if len(requests) == 1:
        return first
    counts.copy("join", sum(rows.data.nbytes for rows in requests))
    return replace(
        first,
        **{name: np.concatenate([getattr(rows, name) for rows in requests]) for name in (*_COLUMNS, "data")},
        ids=None if first.ids is None else [id for rows in requests for id in rows.ids or ()],
        deadline=None
        if all(rows.deadline is None for rows in requests)
        else np.concatenate([np.full(len(r.call), np.inf) if r.deadline is None else r.deadline for r in requests]),
        caller=None if all(rows.caller is None for rows in requests) else np.concatenate([r.callers for r in requests]),
        timings=None
        if all(rows.timings is None for rows in requests)
        else np.concatenate([np.full(len(r.call), None) if r.timings is None else r.timings for r in requests]),
    )


def refused(rows: Rows, error: CellarError) -> RowsRefused:
    """The answer to rows that no session sees."""
    nothing = np.zeros(len(rows.call), np.int64)
    return RowsRefused(
        rows.to,
        rows.call,
        rows.frame_id,
        rows.handle,
        rows.position,
        nothing,
        (),
        error,
        rows.ids is not None or isinstance(rows, PredictRows),
    )
