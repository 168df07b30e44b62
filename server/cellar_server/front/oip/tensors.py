"""Tensors of the protocol to bytes and back."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import DataType

from cellar_server.errors import CellarError

# Datatype names by ours, and the field of typed contents that carries each.
DATATYPES = {
    DataType.FLOAT32: "FP32",
    DataType.INT64: "INT64",
    DataType.INT16: "INT16",
    DataType.UINT8: "UINT8",
    DataType.TEXT: "BYTES",
}
_DTYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
    "INT16": np.dtype("<i2"),
    "UINT8": np.dtype("u1"),
}
_CONTENTS = {
    "FP32": "fp32_contents",
    "INT64": "int64_contents",
    "INT16": "int_contents",
    "UINT8": "uint_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True)
class Given:
    """One input as it came. data: little-endian bytes, row by row; elements: of a BYTES tensor."""

    name: str
    shape: list[int]
    data: bytes = b""
    elements: tuple[bytes, ...] = ()


def given(request: Any, name: str, datatype: str, shape: list[int]) -> Given:
    """The one input of a request; CellarError unless it has this name, datatype and shape (-1: any size).

    Errors: INVALID_REQUEST, DTYPE_MISMATCH, SHAPE_MISMATCH (which names the tensor, its shape and both sizes),
    UNSUPPORTED for shared memory.
    """
    inputs = request.inputs
    if len(inputs) != 1 or inputs[0].name != name:
        names = ", ".join(repr(tensor.name) for tensor in inputs) or "none"
        raise CellarError(Reason.INVALID_REQUEST, f"the model takes one input, {name!r}; the request has {names}")
    tensor = inputs[0]
    if tensor.parameters and any(key.startswith("shared_memory") for key in tensor.parameters):
        raise CellarError(Reason.UNSUPPORTED, f"input {name!r} lies in shared memory: send it in the message")
    if tensor.datatype != datatype:
        raise CellarError(Reason.DTYPE_MISMATCH, f"input {name!r} is {tensor.datatype}; the model takes {datatype}")
    found = list(tensor.shape)
    if len(found) != len(shape) or any(
        want not in (-1, size) or size < 0 for want, size in zip(shape, found, strict=True)
    ):
        raise CellarError(Reason.SHAPE_MISMATCH, f"input {name!r} has shape {found}; the model takes {shape}")
    raw = request.raw_input_contents
    if raw and len(raw) != 1:
        raise CellarError(Reason.INVALID_REQUEST, f"the request has 1 input and {len(raw)} raw contents")
    count = math.prod(found)
    if datatype == "BYTES":
        elements = _elements(raw[0], name) if raw else tuple(tensor.contents.bytes_contents)
        if len(elements) != count:
            raise CellarError(
                Reason.SHAPE_MISMATCH, f"input {name!r} holds {len(elements)} elements; its shape {found} is {count}"
            )
        return Given(name, found, elements=elements)
    dtype = _DTYPES[datatype]
    if raw:
        data = raw[0]
    else:
        values = getattr(tensor.contents, _CONTENTS[datatype])
        try:
            data = np.array(values[:], dtype).tobytes()
        except OverflowError:
            raise CellarError(Reason.DTYPE_MISMATCH, f"input {name!r} holds values that are no {datatype}") from None
    if len(data) != count * dtype.itemsize:
        raise CellarError(
            Reason.SHAPE_MISMATCH,
            f"input {name!r} holds {len(data)} bytes; {datatype} of shape {found} is {count * dtype.itemsize} bytes",
        )
    return Given(name, found, data)


def _elements(data: bytes, name: str) -> tuple[bytes, ...]:
    """The elements of a BYTES tensor: each behind its length as a little-endian uint32."""
    elements, at = [], 0
    while at < len(data):
        if at + 4 > len(data):
            raise CellarError(Reason.SHAPE_MISMATCH, f"input {name!r} ends within the length of an element")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise CellarError(
                Reason.SHAPE_MISMATCH,
                f"input {name!r} ends within an element of {size} bytes: {len(data) - at} are there",
            )
        elements.append(data[at : at + size])
        at += size
    return tuple(elements)


@dataclass(frozen=True)
class Output:
    """One output: its name, datatype, shape and little-endian bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


def numbers(name: str, values: np.ndarray) -> Output:
    """A tensor of float32 or int64."""
    datatype = {"f": "FP32", "i": "INT64"}[values.dtype.kind]
    return Output(name, datatype, values.shape, np.ascontiguousarray(values, _DTYPES[datatype]).tobytes())


def text(name: str, value: bytes) -> Output:
    """A BYTES tensor [1]."""
    return Output(name, "BYTES", (1,), struct.pack("<I", len(value)) + value)
