"""Checks of what callers send: sizes, dtypes, values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import DataType

from cellar_server.errors import CellarError
from cellar_server.zoo import Model

NAMES: dict[int, str] = {
    DataType.FLOAT32: "float32",
    DataType.INT64: "int64",
    DataType.INT16: "int16",
    DataType.UINT8: "uint8",
    DataType.TEXT: "text",
}


class Content:
    """How a model's input looks on the wire: dtype, shape of one unit, bytes of one unit. is_coded: a codec makes the
    steps of it, so that a chunk may give none."""

    def __init__(self, model: Model) -> None:
        is_text = model.text is not None
        self.is_coded = model.codec is not None
        self.wire_dtype = DataType.TEXT if is_text else model.manifest.input.dtype
        self.unit_shape = () if self.is_coded else tuple(model.runtime.input_shape)
        self.dtype = np.dtype(np.uint8) if is_text else np.dtype(model.runtime.input_dtype)
        self.unit_bytes = self.dtype.itemsize * int(np.prod(self.unit_shape, dtype=np.int64))
        self.vocabulary = 0 if is_text else model.manifest.input.vocabulary

    def check(self, dtype: int, shape: Sequence[int], num_bytes: int, total: int) -> None:
        """CellarError DTYPE_MISMATCH or SHAPE_MISMATCH unless a tensor holds `total` units of the model's input."""
        if dtype and dtype != self.wire_dtype:
            raise CellarError(
                Reason.DTYPE_MISMATCH,
                f"the model takes {NAMES[self.wire_dtype]}, not {NAMES.get(dtype, f'dtype {dtype}')}",
            )
        if shape and list(shape) != (expected := [total, *self.unit_shape]):
            raise CellarError(
                Reason.SHAPE_MISMATCH, f"inputs have shape {list(shape)}; lengths and model make it {expected}"
            )
        if num_bytes != total * self.unit_bytes:
            raise CellarError(
                Reason.SHAPE_MISMATCH,
                f"inputs are {num_bytes} bytes; {NAMES[self.wire_dtype]} {[total, *self.unit_shape]} "
                f"is {total * self.unit_bytes}",
            )

    def array(self, data: bytes | np.ndarray, total: int) -> np.ndarray:
        """The units [total, ...] in place."""
        return np.frombuffer(data, self.dtype, total * self.unit_bytes // self.dtype.itemsize).reshape(
            total, *self.unit_shape
        )

    def _good(self, values: np.ndarray) -> np.ndarray | None:
        """Which values the model can take; None: all."""
        if values.dtype.kind == "f":
            return np.isfinite(values)
        return (values >= 0) & (values < self.vocabulary) if self.vocabulary else None

    def is_good(self, values: np.ndarray) -> bool:
        """The model can take all values of a chunk: what `bad_rows` says, sooner for a few."""
        good = self._good(values)
        return good is None or 0 not in good.tobytes()

    def bad_rows(self, values: np.ndarray, lengths: np.ndarray) -> list[tuple[int, CellarError]]:
        """Chunks with values that the model cannot take: NaN, infinities, ids outside the vocabulary.

        values: the packed units [sum(lengths), ...]; lengths: [N], none 0.
        """
        good = self._good(values)
        if good is None or good.all():
            return []
        if values.dtype.kind == "f":
            reason, text = Reason.NON_FINITE_INPUT, "the chunk holds NaN or an infinity at step {}"
        else:
            reason = Reason.OUT_OF_VOCABULARY
            text = f"the chunk holds an id outside 0..{self.vocabulary - 1} at step {{}}"
        bad_units = np.flatnonzero(~good.reshape(len(values), -1).all(axis=1))
        ends = np.cumsum(lengths)
        chunks = np.searchsorted(ends, bad_units, side="right")
        first: dict[int, int] = {}
        for chunk, unit in zip(chunks.tolist(), bad_units.tolist(), strict=True):
            first.setdefault(chunk, unit - int(ends[chunk] - lengths[chunk]))
        return [(chunk, CellarError(reason, text.format(step))) for chunk, step in first.items()]
