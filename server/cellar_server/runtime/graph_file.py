"""What a graph file must not hold: tensors that lie in other files.

ONNX Runtime resolves the place of such a tensor against the model's folder, and of a graph that is opened from bytes
against the working directory; what it forbids there differs from version to version. So the file is walked here, as
plain protobuf wire format, and nothing of it is copied. Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_DEPTH = 64

# Of each message the fields that lead to tensors: number -> kind of message.
_GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING, _MODEL = range(8)
_FIELDS: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


def check_graph(data: bytes) -> None:
    """ValueError where a graph file refers to another file, or is no protobuf."""
    _check(memoryview(data), _MODEL, 0)


def _check(data: memoryview, kind: int, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError("the graph is nested too deeply")
    fields = _FIELDS[kind]
    for number, value in _walk(data):
        if kind == _TENSOR and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            raise ValueError("the graph keeps a tensor in another file; a model's graph is one file")
        if number in fields:
            if isinstance(value, int):
                raise ValueError("the graph file is no ONNX")
            _check(value, fields[number], depth + 1)


def _walk(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Fields of a message: their numbers, and a number or the bytes."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(data, at)
        if size is None or not number or at + size > end:
            raise ValueError("the graph file is no ONNX")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("the graph file is no ONNX")
