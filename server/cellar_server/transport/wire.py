"""The wire format of cellar.v1 as far as rows are read and answered without protobuf, as wire.h and answers.h do it.

A message is read so where it is what protobuf itself would have written, and holds one chunk. What stands around its
values is read by protobuf once, and known again by its bytes. All else is left to protobuf, so nothing is refused here.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from cellar_proto.v1.inference_pb2 import Frame, StreamRequest
from google.protobuf.message import DecodeError

ABSENT = -1
# Bytes around values that are kept: callers whose timeouts differ from message to message fill it.
_MOST_KNOWN = 1024
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
    begin = found.end()
    known = _known.get(before)
    if known is None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        known = _known[before] = _size_of_values(before), {}
    end = begin + known[0]
    behind = message[end:]
    around = known[1].get(behind, ...)
    if around is ...:
        if len(known[1]) >= _MOST_KNOWN:
            known[1].clear()
        around = known[1][behind] = _around(message)
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
        message[begin:end],
    )


def _size_of_values(before: bytes) -> int:
    """The number that ends what comes before values."""
    at = len(before) - 1
    while before[at - 1] & 0x80:
        at -= 1
    return _number(before[at:])


def _around(message: bytes) -> _Around | None:
    try:
        read = StreamRequest.FromString(message)
    except DecodeError:
        return None
    read.DiscardUnknownFields()
    frame: Frame = read.frame
    is_row = len(frame.handles) == len(frame.positions) == 1 and frame.inputs.data
    if not is_row or any(len(c) > 1 for c in (frame.lengths, frame.timeouts_ms, frame.priorities, frame.ends)):
        return None
    if read.SerializeToString() != message:
        return None
    length = frame.lengths[0] if frame.lengths else ABSENT
    timeout_ms = frame.timeouts_ms[0] if frame.timeouts_ms else 0
    for name in ("frame_id", "handles", "positions", "lengths", "timeouts_ms"):
        frame.ClearField(name)
    return _Around(length, _take_values(frame.inputs), timeout_ms, frame.SerializeToString())


def _take_values(inputs: Any) -> int:
    """Takes the values out of a tensor, and its first axis, which is returned; ABSENT where it has none."""
    inputs.ClearField("data")
    shape = inputs.shape[:]
    if not shape:
        return ABSENT
    del inputs.shape[:]
    inputs.shape.extend(shape[1:])
    return int(shape[0])


class Tensors:
    """The fields of answers that say what their values are. axes: of an emission."""

    def __init__(self, axes: tuple[int, ...], emission_bytes: int) -> None:
        self._axes = b"".join(map(varint, axes))
        self._emission_bytes = emission_bytes
        self._known: dict[int, bytes] = {}

    def answer(self, emissions: int) -> bytes:
        """Of an Answer with so many: its lengths and outputs, as far as the values."""
        made = self._known.get(emissions)
        if made is None:
            num_bytes = emissions * self._emission_bytes
            shape = varint(emissions) + self._axes
            head = b"\x08\x01\x12" + varint(len(shape)) + shape  # FLOAT32
            head += b"\x1a" + varint(num_bytes) if num_bytes else b""
            made = b"\x2a" + packed(emissions) + b"\x32" + varint(len(head) + num_bytes) + head
            self._known[emissions] = made
        return made


def packed(value: int) -> bytes:
    """A packed column of one number, with its size."""
    if value < len(_PACKED):
        return _PACKED[value]
    made = varint(value)
    return varint(len(made)) + made


def answer(
    frame_id: int, handle: bytes, start: int, position: int, tensor: bytes, values: bytes, behind: bytes
) -> bytes:
    """A StreamResponse with an Answer of one row. tensor: see Tensors; behind: further fields."""
    columns = b"\x0a", packed(frame_id), b"\x12\x08", handle, b"\x1a", packed(start), b"\x22", packed(position)
    body = b"".join((*columns, tensor, values, behind))
    return b"\x12" + varint(len(body)) + body
