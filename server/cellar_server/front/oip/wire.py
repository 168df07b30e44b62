"""Requests of sequences read without protobuf, and answers written from bytes that are kept.

Requests that go on with a sequence differ in its number, their id, their position and their values. What stands around
these is read by protobuf once, and known again by its bytes. All else is left to protobuf, so nothing is refused here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cellar_server.front.oip import schema, tensors
from cellar_server.front.oip.asked import Asked
from cellar_server.transport.wire import varint

# Tags of a request's fields, all of which have a size; they come in this order.
_ID, _PARAMETER, _VALUES = 0x1A, 0x22, 0x3A
_TAGS = frozenset((0x0A, 0x12, _ID, _PARAMETER, 0x2A, 0x32, _VALUES))
# A parameter behind its size, as far as the size of what it holds.
_SEQUENCE, _POSITION = b"\x0a\x0bsequence_id\x12", b"\x0a\x08position\x12"
# Tags of what it holds.
_INTEGER, _TEXT = 0x10, 0x1A
# Bytes around values that are kept: those of one request at most.
_MOST_AROUND = 512


class Found(NamedTuple):
    """A request of a sequence. around: its bytes without what stands here; id: the whole field; sequence, position:
    what the parameter holds; values: its raw contents."""

    around: tuple[bytes, ...]
    id: bytes
    sequence: bytes
    position: bytes
    values: bytes


def find(message: bytes) -> Found | None:
    """The parts of a request of a sequence; None where it is another message, or something is odd about it."""
    try:
        return _find(message)
    except IndexError:  # it ends within a field
        return None


def _find(message: bytes) -> Found | None:
    at = before = kept = 0
    id = sequence = position = b""
    around: list[bytes] = []
    while (tag := message[at]) != _VALUES:
        size = message[at + 1]
        if size > 0x7F or tag < before or tag not in _TAGS or (tag == before and tag <= _ID):
            return None
        end = at + 2 + size
        if tag == _ID:
            id = message[at:end]
            if not id.isascii() or not size:
                return None
            around.append(message[kept:at])
            kept = end
        elif tag == _PARAMETER:
            if message.startswith(_SEQUENCE, at + 2):
                if sequence or message[at + 16] != size - 15:
                    return None
                sequence = message[at + 17 : end]
                around.append(message[kept:at])
                kept = end
            elif message.startswith(_POSITION, at + 2):
                if position or message[at + 13] != size - 12:
                    return None
                position = message[at + 14 : end]
                around.append(message[kept:at])
                kept = end
        before, at = tag, end
    size = shift = 0
    at += 1
    while (byte := message[at]) & 0x80 and shift < 28:
        size |= (byte & 0x7F) << shift
        shift += 7
        at += 1
    at += 1
    if not sequence or at > _MOST_AROUND or at + (size | byte << shift) != len(message):
        return None
    around.append(message[kept:at])
    return Found(tuple(around), id, sequence, position, message[at:])


def whole(raw: bytes) -> int | None:
    """A number above 0 that a parameter holds; None for anything else."""
    if not 1 < len(raw) < 11 or raw[0] != _INTEGER or raw[-1] > 0x7F:
        return None
    value = 0
    for i, byte in enumerate(raw[1:]):
        if byte < 0x80 and i < len(raw) - 2:
            return None
        value |= (byte & 0x7F) << 7 * i
    return value or None


def number_or_text(raw: bytes) -> int | str | None:
    """The number above 0, or the text, that a parameter holds; None for anything else."""
    if len(raw) > 2 and raw[0] == _TEXT and raw[1] == len(raw) - 2 and raw[1] < 0x80 and raw.isascii():
        return raw[2:].decode()
    return whole(raw)


class Heads:
    """Responses to requests of one kind: what stands before the id and between it and the values, by what they say.

    asked: one of them, whose outputs it has; is_last: the response is the last, and only, one on a stream."""

    def __init__(self, asked: Asked, *, is_last: bool) -> None:
        self._asked, self._is_last = asked, is_last
        self._gives_all = asked.signature.gives_all(asked.given)
        names = {"model_name": asked.engine.name, "model_version": str(asked.engine.version)}
        self._names: bytes = schema.ModelInferResponse(**names).SerializeToString()
        self._known: dict[int, bytes] = {}  # by emissions

    def response(self, id: bytes, outputs: np.ndarray) -> bytes:
        """A ModelInferResponse, on a stream a ModelStreamInferResponse. id: the request's field; outputs: emissions."""
        values = outputs if self._gives_all else outputs[-1:]
        data = values.tobytes()
        between = self._known.get(len(values))
        if between is None:
            between = self._between(values, len(data))
        made = b"".join((self._names, id, between, data))
        return b"\x12" + varint(len(made)) + made if self._is_last else made

    def _between(self, values: np.ndarray, num_bytes: int) -> bytes:
        asked = self._asked
        name = asked.signature.outputs[0].name
        response = asked.respond([tensors.numbers(name, values[None] if self._gives_all else values)])
        if self._is_last:
            flag_final(response, True)
        raw: bytes = response.SerializeToString()
        made = raw[len(self._names) : len(raw) - num_bytes]
        if len(self._known) < _MOST_AROUND:
            self._known[len(values)] = made
        return made


def flag_final(response: Any, is_final: bool) -> None:
    """Says of a response on a stream whether it is the last one to its request."""
    response.parameters["triton_final_response"].bool_param = is_final
