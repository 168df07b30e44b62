"""One model's inputs and outputs, between Python values and messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from cellar_proto.v1 import inference_pb2, manifest_pb2
from cellar_proto.v1.tensor_pb2 import DataType, Tensor

from cellar_client.emissions import Emissions
from cellar_client.errors import CellarError, DtypeMismatch, ShapeMismatch, TooLarge, from_error
from cellar_client.messages import ModelInfo

DTYPES: dict[int, np.dtype[Any]] = {
    DataType.FLOAT32: np.dtype("<f4"),
    DataType.INT64: np.dtype("<i8"),
    DataType.INT16: np.dtype("<i2"),
    DataType.UINT8: np.dtype("u1"),
}
# Left free in a message for everything but its values.
MARGIN_BYTES = 64 << 10


class Codec:
    """One model's inputs and outputs: arrays and texts to bytes and back."""

    def __init__(self, info: ModelInfo) -> None:
        assert info.manifest is not None
        self.info = info
        self.dtype: np.dtype[Any] = np.dtype("u1") if info.is_text else DTYPES[info.manifest.input.dtype]
        self.wire_dtype = DataType.TEXT if info.is_text else info.manifest.input.dtype
        # text is sent in bytes and PCM in samples, cut anywhere; all else in steps
        is_cut_anywhere = info.is_text or info.manifest.position_unit == manifest_pb2.SAMPLES
        self.shape = () if is_cut_anywhere else info.input_shape
        self.unit_bytes = self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    def encode(self, values: Any) -> tuple[bytes, int]:
        """Bytes and length (steps, bytes of text or PCM samples) of one sequence; one step may come without its time
        axis. DtypeMismatch, ShapeMismatch."""
        if self.info.is_text:
            if not isinstance(values, str | bytes):
                raise DtypeMismatch(f"model {self.info.name!r} takes text, not {type(values).__name__}")
            raw = values.encode() if isinstance(values, str) else values
            return raw, len(raw)
        try:
            array = np.asarray(values)
            if array.dtype.kind not in "fiub" or (self.dtype.kind == "i" and array.dtype.kind == "f"):
                raise TypeError
            array = np.ascontiguousarray(array, self.dtype)
        except (TypeError, ValueError):
            raise DtypeMismatch(f"model {self.info.name!r} takes {self.dtype.name} values") from None
        if array.shape == self.shape:
            array = array[None]
        if array.shape[1:] != self.shape or not array.ndim:
            sizes = ", ".join(map(str, self.shape))
            one, many = (f"a step [{sizes}]", f"steps [time, {sizes}]") if sizes else ("a number", "numbers [time]")
            raise ShapeMismatch(f"model {self.info.name!r} takes {one} or {many}; the input is {list(array.shape)}")
        return array.tobytes(), len(array)

    def tensor(self, data: bytes) -> Tensor:
        return Tensor(dtype=self.wire_dtype, data=data)

    def decode(self, tensor: Tensor) -> Emissions:
        """float32 [emissions, ...]."""
        assert self.info.manifest is not None
        shape = tuple(tensor.shape) or (0, *self.info.manifest.output.shape)
        return Emissions(np.frombuffer(tensor.data, "<f4").reshape(shape), self.info.labels)

    def nothing(self) -> Emissions:
        """float32 [0, ...]."""
        return self.decode(Tensor())

    def split(self, data: bytes, length: int) -> Iterator[tuple[bytes, int]]:
        """Chunks that the server takes. Text is cut between any two bytes: the server holds half characters back."""
        step = min(self.info.max_chunk, max(1, (self.info.max_message_bytes - MARGIN_BYTES) // self.unit_bytes))
        for at in range(0, max(length, 1), step):
            part = data[at * self.unit_bytes : (at + step) * self.unit_bytes]
            yield part, len(part) // self.unit_bytes

    def calls(self, items: Sequence[Any]) -> Iterator[tuple[list[int], list[int], list[bytes], dict[int, CellarError]]]:
        """Sequences in calls that the server takes: places, lengths, bytes, and the places that cannot be sent."""
        limit = self.info.max_message_bytes - MARGIN_BYTES
        places: list[int] = []
        lengths: list[int] = []
        parts: list[bytes] = []
        errors: dict[int, CellarError] = {}
        size = 0
        for i, item in enumerate(items):
            try:
                data, length = self.encode(item)
                if len(data) > limit:
                    raise TooLarge(f"the sequence is {len(data)} bytes; one message takes {limit}: use a session")
            except CellarError as error:
                errors[i] = error
                continue
            if places and (size + len(data) > limit or len(places) >= min(self.info.max_rows, 1024)):
                yield places, lengths, parts, errors
                places, lengths, parts, errors, size = [], [], [], {}, 0
            places.append(i)
            lengths.append(length)
            parts.append(data)
            size += len(data)
        if places or errors:
            yield places, lengths, parts, errors

    def predict_request(
        self,
        lengths: list[int],
        parts: list[bytes],
        *,
        version: int,
        timeout_s: float,
        all_emissions: bool | None,
        bulk: bool,
    ) -> inference_pb2.PredictRequest:
        return inference_pb2.PredictRequest(
            model=self.info.name,
            version=version,
            lengths=lengths,
            inputs=self.tensor(b"".join(parts)),
            all_emissions=all_emissions,  # type: ignore[arg-type]  # None: absent
            timeout_ms=max(1, round(timeout_s * 1000)),
            is_bulk=bulk,
        )

    def predictions(
        self, response: inference_pb2.PredictResponse, all_emissions: bool | None
    ) -> list[Emissions | CellarError]:
        """One answer a sequence; a mode with one answer gives it without the emission axis."""
        outputs = self.decode(response.outputs)
        is_single = self.info.is_single if all_emissions is None else not all_emissions
        answers: list[Emissions | CellarError] = []
        at = 0
        for length in response.lengths:
            answers.append(outputs[at] if is_single and length else outputs[at : at + length])
            at += length
        for error in response.errors:
            answers[error.row] = from_error(error.error)
        return answers
