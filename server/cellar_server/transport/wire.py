"""The wire format of cellar.v1 as far as rows are read and answered without protobuf, as wire.h and answers.h do it.

A message is read so where it is what protobuf itself would have written, and holds one chunk. What stands around its
values is read by protobuf once, and known again by its bytes. All else is left to protobuf, so nothing is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from cellar_proto.v1.inference_pb2 import PredictRequest, StepRequest, StreamRequest
from google.protobuf.message import DecodeError

ABSENT = -1
# Bytes around values that are kept: callers whose timeouts differ from message to message fill it.
_MOST_KNOWN = 1024
# Different bytes behind the same, and how many bytes that may be: what a caller sends is kept.
_MOST_ENDS, _MOST_BEHIND = 64, 32
# Sizes of answers that are known again.
_MOST_TENSORS = 1024
_VARINT = rb"[\x80-\xff]{0,9}[\x00-\x7f]"


def _sized(most: int) -> bytes:
    """A pattern of a size of at most so many bytes, and them."""
    return b"(?:" + b"|".join(re.escape(bytes([n])) + b".{%d}" % n for n in range(1, most + 1)) + b")"


# Of a Tensor: its size, and its fields as far as its values.
_TENSOR = rb"%b(?:\x08%b)?(?:\x12%b)?\x1a%b" % (_VARINT, _VARINT, _sized(40), _VARINT)
# StreamRequest with a Frame: its size, frame_id, handle, position, and what comes before the values.
_FRAME = re.compile(
    rb"\x12(%b)(?:\x08(%b))?\x12\x08(.{8})\x1a(%b)((?:\x22%b)?\x2a%b)"
    % (_VARINT, _VARINT, _sized(10), _sized(5), _TENSOR),
    re.DOTALL,
)
# StepRequest behind its id: position, and what comes before the values.
_STEP = re.compile(rb"(?:\x10(%b))?(\x1a%b)" % (_VARINT, _TENSOR), re.DOTALL)
# PredictRequest behind its model, as far as the values.
_PREDICT = re.compile(rb"(?:\x10%b)?(?:\x1a%b)?\x22%b" % (_VARINT, _sized(5), _TENSOR), re.DOTALL)


class Row(NamedTuple):
    """A chunk of one session. rest: its message without what stands here; ABSENT: not given."""

    frame_id: int
    handle: int  # its bits as a signed number, as that of frame_id
    position: int
    length: int
    first_axis: int
    timeout_ms: int
    rest: bytes
    data: bytes


class _Around(NamedTuple):
    """What a message says beside its values: see Row."""

    length: int
    first_axis: int
    timeout_ms: int
    rest: bytes


def varint(value: int) -> bytes:
    """In base 128, the lowest bits first."""
    if value < len(_VARINTS):
        return _VARINTS[value]
    if value < 1 << 28:  # positions and frames of a stream that is open for hours
        return (value & 0x7F | (value & 0x3F80) << 1 | 0x8080).to_bytes(2, "little") + _VARINTS[value >> 14]
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


_VARINTS: list[bytes] = []
for _value in range(1 << 14):
    _VARINTS.append(bytes([_value]) if _value < 0x80 else bytes([_value & 0x7F | 0x80, _value >> 7]))
_NUMBERS = {made: value for value, made in enumerate(_VARINTS)}
_PACKED = [bytes([len(made)]) + made for made in _VARINTS]


def _number(raw: bytes) -> int:
    """The value of a varint's bytes; ABSENT where they are not its shortest, or too many."""
    known = _NUMBERS.get(raw)
    if known is not None:
        return known
    high = _NUMBERS.get(raw[2:])
    if high:
        low = raw[0] & 0x7F | (raw[1] & 0x7F) << 7
        return low | high << 14
    value = 0
    for i, byte in enumerate(raw):
        value |= (byte & 0x7F) << 7 * i
    return value if value < 1 << 64 and varint(value) == raw else ABSENT


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


# By what comes before the values: their size, and by what comes behind them what both say (None: it is no row).
_known: dict[bytes, tuple[int, dict[bytes, _Around | None]]] = {}


def read_frame(message: bytes) -> Row | None:
    """A StreamRequest with a Frame of one row; None where it is another message, or something is odd about it."""
    found = _FRAME.match(message)
    if found is None:
        return None
    size, frame_id, handle, position, before = found.groups()
    number = _number(frame_id) if frame_id is not None else 0
    start = _number(position[1:])
    if varint(len(message) - 1 - len(size)) != size or number < 0 or not 0 <= start < 1 << 63:
        return None
    around, values = _read(message, found.end(), before, _around_frame, message)
    if around is None or not any(handle):
        return None
    length, first_axis, timeout_ms, rest = around
    return Row(
        _signed(number),
        int.from_bytes(handle, "little", signed=True),
        start,
        length,
        first_axis,
        timeout_ms,
        rest,
        values,
    )


def read_step(message: bytes) -> tuple[Row, bytes] | None:
    """A StepRequest, and its session's id as it came; None as above."""
    begin = _end_of_name(message)
    found = _STEP.match(message, begin) if begin > 2 else None
    if found is None:
        return None
    position, before = found.groups()
    start = _number(position) if position is not None else ABSENT
    if position is not None and not 0 <= start < 1 << 63:
        return None
    # what stands around the values has nothing to do with the id
    around, values = _read(message, found.end(), before, _around_step, b"\x0a\x01-" + message[begin:])
    if around is None:
        return None
    length, first_axis, timeout_ms, rest = around
    return Row(0, 0, start, length, first_axis, timeout_ms, rest, values), message[2:begin]


def read_predict(message: bytes) -> Row | None:
    """A PredictRequest of one sequence; None as above."""
    begin = _end_of_name(message)
    found = _PREDICT.match(message, begin) if begin else None
    if found is None:
        return None
    around, values = _read(message, found.end(), message[: found.end()], _around_predict, message)
    return None if around is None else Row(0, 0, ABSENT, *around, values)


def _end_of_name(message: bytes) -> int:
    """Where the first field ends, which is a short text; 0 where it is none."""
    return 2 + message[1] if len(message) > 2 and message[0] == 0x0A and message[1] < 0x80 else 0


def _read(
    message: bytes, begin: int, before: bytes, learn: Callable[[bytes], _Around | None], example: bytes
) -> tuple[_Around | None, bytes]:
    """What stands around the values that begin there, and them. example: what `learn` reads it from the first time."""
    known = _known.get(before)
    if known is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        known = _known[before] = _size_of_values(before), {}
    end = begin + known[0]
    behind = message[end:]
    if end > len(message) or len(behind) > _MOST_BEHIND:
        return None, b""
    around = known[1].get(behind, ...)
    if around is ...:
        if len(known[1]) >= _MOST_ENDS:
            known[1].clear()
        around = known[1][behind] = learn(example)
    return around, message[begin:end]


def _size_of_values(before: bytes) -> int:
    """The number that ends what comes before values."""
    at = len(before) - 1
    while before[at - 1] & 0x80:
        at -= 1
    return _number(before[at:])


def _around_frame(message: bytes) -> _Around | None:
    read = _canonical(StreamRequest, message)
    frame = read.frame if read is not None else None
    if frame is None or not len(frame.handles) == len(frame.positions) == 1 or not frame.inputs.data:
        return None
    if any(len(column) > 1 for column in (frame.lengths, frame.timeouts_ms, frame.priorities, frame.ends)):
        return None
    length = frame.lengths[0] if frame.lengths else ABSENT
    timeout_ms = frame.timeouts_ms[0] if frame.timeouts_ms else 0
    return _without(frame, ("frame_id", "handles", "positions", "lengths", "timeouts_ms"), length, timeout_ms)


def _around_step(message: bytes) -> _Around | None:
    read = _canonical(StepRequest, message)
    if read is None or not read.inputs.data:
        return None
    return _without(read, ("session_id", "position", "length", "timeout_ms"), read.length or ABSENT, read.timeout_ms)


def _around_predict(message: bytes) -> _Around | None:
    read = _canonical(PredictRequest, message)
    if read is None or not read.inputs.data or len(read.lengths) > 1:
        return None
    return _without(read, ("lengths", "timeout_ms"), read.lengths[0] if read.lengths else ABSENT, read.timeout_ms)


def _canonical(kind: Any, message: bytes) -> Any:
    """A message, where protobuf would have written it as it is; else None."""
    try:
        read = kind.FromString(message)
    except DecodeError:
        return None
    read.DiscardUnknownFields()
    return read if read.SerializeToString() == message else None


def _without(read: Any, fields: tuple[str, ...], length: int, timeout_ms: int) -> _Around:
    for name in fields:
        read.ClearField(name)
    return _Around(length, _take_values(read.inputs), timeout_ms, read.SerializeToString())


def _take_values(inputs: Any) -> int:
    """Takes the values out of a tensor, and its first axis, which is returned; ABSENT where it has none."""
    inputs.ClearField("data")
    shape = inputs.shape[:]
    if not shape:
        return ABSENT
    del inputs.shape[:]
    inputs.shape.extend(shape[1:])
    return int(shape[0])


@lru_cache(_MOST_TENSORS)
def tensor(emissions: int, axes: tuple[int, ...]) -> bytes:
    """Of a Tensor float32 [emissions, *axes]: its size, and its fields as far as the values."""
    num_bytes = 4 * emissions * prod(axes)
    shape = varint(emissions) + b"".join(map(varint, axes))
    head = b"\x08\x01\x12" + varint(len(shape)) + shape
    head += b"\x1a" + varint(num_bytes) if num_bytes else b""
    return varint(len(head) + num_bytes) + head


@lru_cache(_MOST_TENSORS)
def outputs(emissions: int, axes: tuple[int, ...]) -> bytes:
    """Of an Answer with such a tensor: its lengths and outputs, as far as the values."""
    return b"\x2a" + packed(emissions) + b"\x32" + tensor(emissions, axes)


def packed(value: int) -> bytes:
    """A packed column of one number, with its size."""
    if value < len(_PACKED):
        return _PACKED[value]
    made = varint(value)
    return varint(len(made)) + made


def answer(frame_id: int, handle: bytes, start: int, position: int, head: bytes, values: bytes, behind: bytes) -> bytes:
    """A StreamResponse with an Answer of one row. head: see `outputs`; behind: further fields."""
    columns = b"\x0a", packed(frame_id), b"\x12\x08", handle, b"\x1a", packed(start), b"\x22", packed(position)
    body = b"".join((*columns, head, values, behind))
    return b"\x12" + varint(len(body)) + body


def step(position: int, durable: int, head: bytes, values: bytes) -> bytes:
    """A StepResponse. head: see `tensor`."""
    behind = b"\x10" + varint(durable) if durable else b""
    return (b"\x08" + varint(position) if position else b"") + behind + b"\x1a" + head + values


def prediction(version: int, emissions: int, head: bytes, values: bytes) -> bytes:
    """A PredictResponse of one sequence. head: see `tensor`."""
    return b"\x08" + varint(version) + b"\x12" + packed(emissions) + b"\x1a" + head + values
