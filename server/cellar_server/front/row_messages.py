"""Rows from what a transport gives, and the messages that they came in, where these must go the common way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from cellar_proto.v1.inference_pb2 import Frame, PredictRequest, StepRequest
from google.protobuf.message import DecodeError

from cellar_server.sessions.messages import PredictRows, Rows
from cellar_server.sessions.selection import chosen
from cellar_server.transport.wire import varint


def rows_of(
    to: Any,
    rest: bytes,
    common: Any,
    numbers: np.ndarray,
    deadline: np.ndarray | None,
    data: np.ndarray,
    kind: type[Rows] = Rows,
) -> Any:
    """Rows from the transport's columns: numbers [n, 8]; the others as in Rows."""
    call, stream, frame_id, handle, *others = np.ascontiguousarray(numbers.T)
    named = call.view(np.uint64), stream, frame_id.view(np.uint64), handle.view(np.uint64)
    return kind(to, rest, common, *named, *others, data, deadline=deadline)  # type: ignore[call-arg, misc]


@lru_cache(256)
def common_frame(rest: bytes) -> Frame:
    """What rows of streams have in common. Not to be changed."""
    return Frame.FromString(rest)


@lru_cache(256)
def common_step(rest: bytes) -> Frame:
    """The same of unary steps."""
    step = StepRequest.FromString(rest)
    return Frame(
        inputs=step.inputs,
        priorities=[step.priority] if step.priority else None,
        ends=[True] if step.ends else None,
    )


@lru_cache(256)
def common_predict(rest: bytes) -> PredictRequest | None:
    """The same of whole sequences; None where it is no request."""
    try:
        return PredictRequest.FromString(rest)
    except DecodeError:
        return None


def frames(rows: Rows) -> Iterator[Frame]:
    """The frame that each row of a stream came in."""
    for one in _ones(rows):
        frame = Frame()
        frame.CopyFrom(rows.frame)
        frame.frame_id = int(one.frame_id[0])
        frame.handles.append(int(one.handle[0]))
        frame.positions.append(int(one.position[0]))
        if one.length[0] >= 0:
            frame.lengths.append(int(one.length[0]))
        _fill(frame, one)
        yield frame


def steps(rows: Rows, rest: bytes, ids: list[bytes]) -> Iterator[bytes]:
    """The message of each unary step. ids: as they came."""
    for one, id in zip(_ones(rows), ids, strict=True):
        request = StepRequest.FromString(rest)
        if one.position[0] >= 0:
            request.position = int(one.position[0])
        request.length = max(0, int(one.length[0]))
        _fill(request, one)
        # the id may not be UTF-8, which the handler's parser says
        yield request.SerializeToString() + b"\x0a" + varint(len(id)) + id


def predicts(rows: PredictRows) -> Iterator[bytes]:
    """The message of each call of one sequence."""
    for one in _ones(rows):
        if rows.frame is None:  # it is no request, and the handler's parser says so
            yield rows.rest
            continue
        request = PredictRequest()
        request.CopyFrom(rows.frame)
        if one.length[0] >= 0:
            request.lengths.append(int(one.length[0]))
        _fill(request, one)
        yield request.SerializeToString()


def _ones(rows: Rows) -> Iterator[Any]:
    for row in range(len(rows.call)):
        yield chosen(rows, np.array([row]))


def _fill(request: Frame | StepRequest | PredictRequest, one: Rows) -> None:
    """The tensor and the time-out of a single row."""
    if one.deadline is not None and np.isfinite(one.deadline[0]):
        left_ms = max(1, int(1000 * (one.deadline[0] - time.monotonic())))
        if isinstance(request, Frame):
            request.timeouts_ms.append(left_ms)
        else:
            request.timeout_ms = left_ms
    inputs = request.inputs
    tail = list(inputs.shape)
    del inputs.shape[:]
    if one.first_axis[0] >= 0:
        inputs.shape.extend([int(one.first_axis[0]), *tail])
    inputs.data = one.data.tobytes()
