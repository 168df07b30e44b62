"""Between Python values and messages: what both clients share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cellar_proto.v1 import inference_pb2, manifest_pb2, models_pb2, sampling_pb2, sessions_pb2
from cellar_proto.v1.manifest_pb2 import Mode
from cellar_proto.v1.state_pb2 import SessionState
from cellar_proto.v1.tensor_pb2 import DataType, Tensor
from google.protobuf.message import DecodeError

from cellar_client.emissions import Emissions
from cellar_client.errors import CellarError, DtypeMismatch, ShapeMismatch, StateIncompatible, TooLarge, from_error

DTYPES = {
    DataType.FLOAT32: np.dtype("<f4"),
    DataType.INT64: np.dtype("<i8"),
    DataType.INT16: np.dtype("<i2"),
    DataType.UINT8: np.dtype("u1"),
}
# Metadata of calls and streams about sessions: what a balancer may choose the server by.
AFFINITY_KEY = "cellar-session"
# Left free in a message for everything but its values.
MARGIN_BYTES = 64 << 10


def channel_options(keepalive_s: float) -> list[tuple[str, int]]:
    """Of a channel that finds a server which comes back within a second, and counts one as gone that does not answer a
    ping within half of `keepalive_s`, sent every `keepalive_s` seconds (0: never)."""
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if keepalive_s:
        options += [
            ("grpc.keepalive_time_ms", int(1000 * keepalive_s)),
            ("grpc.keepalive_timeout_ms", int(500 * keepalive_s)),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    return options


def affinity_metadata(affinity: str) -> tuple[tuple[str, str], ...]:
    """The key by which a balancer keeps a client's sessions on one server, for "" a random one. ValueError for a key
    that is no plain text."""
    if not (affinity.isascii() and affinity.isprintable()):
        raise ValueError("an affinity is printable ASCII")
    return ((AFFINITY_KEY, affinity or mint_id()),)


@dataclass(frozen=True)
class ModelInfo:
    """A model on the server. mode: "many-to-one" and so on; shapes: of one step; error: why it does not serve."""

    name: str
    version: int
    mode: str
    description: str
    architecture: str
    labels: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    is_text: bool
    state_size: int
    error: CellarError | None
    counters: dict[str, Any] = field(repr=False, default_factory=dict)
    max_chunk: int = field(repr=False, default=0)
    max_message_bytes: int = field(repr=False, default=0)
    max_rows: int = field(repr=False, default=0)
    durability: str = field(repr=False, default="")
    manifest: manifest_pb2.Manifest | None = field(repr=False, default=None)

    @property
    def is_single(self) -> bool:
        """One answer for a sequence."""
        return self.mode in ("one-to-one", "many-to-one")


@dataclass(frozen=True)
class SessionInfo:
    """A session on the server; times in seconds, max_age_s 0 for none; position in the model's unit;
    caller: whose it is, where the sessions of all callers were asked for."""

    id: str
    model: str
    version: int
    position: int
    age_s: float
    idle_s: float
    max_idle_s: float
    max_age_s: float
    durable_position: int
    caller: str = ""


@dataclass(frozen=True)
class Token:
    """One emission of a generation. text: what it adds to the text; log_probability: natural, at temperature 1."""

    id: int
    text: str
    log_probability: float
    position: int


def mint_id() -> str:
    """128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


def mint_token() -> bytes:
    """A request token: makes a repeated request the same request."""
    return secrets.token_bytes(16)


def model_info(message: models_pb2.Model) -> ModelInfo:
    manifest, counters, limits = message.manifest, message.counters, message.limits
    return ModelInfo(
        manifest.name,
        manifest.version,
        Mode.Name(manifest.mode).lower().replace("_", "-"),
        manifest.description,
        manifest.architecture,
        tuple(manifest.labels),
        tuple(manifest.input.shape),
        tuple(manifest.output.shape),
        tuple(manifest.input.names),
        tuple(manifest.output.names),
        manifest.HasField("text"),
        manifest.state_size,
        from_error(message.error) if message.HasField("error") else None,
        {
            each.name: dict(value) if each.message_type else value
            for each in counters.DESCRIPTOR.fields
            for value in [getattr(counters, each.name)]
        },
        limits.max_chunk,
        limits.max_message_bytes,
        limits.max_rows,
        limits.durability,
        manifest,
    )


def import_request(blob: bytes, id: str) -> sessions_pb2.ImportSessionRequest:
    """StateIncompatible where the bytes are no exported session."""
    return sessions_pb2.ImportSessionRequest(state=_state(blob), id=id, request_token=mint_token())


def state_parts(blob: bytes) -> dict[str, np.ndarray]:
    """The parts of an exported session's row: float32 arrays by name."""
    state = _state(blob)
    row = np.frombuffer(state.row, "<f4")
    return {
        part.name: row[part.offset : part.offset + int(np.prod(part.shape, dtype=np.int64))].reshape(part.shape).copy()
        for part in state.parts
    }


def _state(blob: bytes) -> SessionState:
    try:
        return SessionState.FromString(blob)
    except DecodeError:
        raise StateIncompatible("these bytes are no exported session") from None


def session_info(message: sessions_pb2.Session) -> SessionInfo:
    return SessionInfo(
        message.id,
        message.model,
        message.version,
        message.position,
        message.age_s,
        message.idle_s,
        message.max_idle_s,
        message.max_age_s,
        message.durable_position,
        message.caller,
    )


class Codec:
    """One model's inputs and outputs: arrays and texts to bytes and back."""

    def __init__(self, info: ModelInfo) -> None:
        assert info.manifest is not None
        self.info = info
        self.dtype = np.dtype("u1") if info.is_text else DTYPES[info.manifest.input.dtype]
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
            raise ShapeMismatch(
                f"model {self.info.name!r} takes steps of {list(self.shape)}, so [time, ...] with them; "
                f"the input is {list(array.shape)}"
            )
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
            all_emissions=all_emissions,
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


def sampling(
    *, seed: int | None, max_steps: int, temperature: float, top_k: int, top_p: float, stop: Sequence[str]
) -> sampling_pb2.Sampling:
    return sampling_pb2.Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, max_steps=max_steps, stop=stop
    )
