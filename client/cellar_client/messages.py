"""Between Python values and messages: what both clients share."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cellar_proto.v1 import manifest_pb2, models_pb2, sampling_pb2, sessions_pb2
from cellar_proto.v1.manifest_pb2 import Mode
from cellar_proto.v1.state_pb2 import SessionState
from google.protobuf.message import DecodeError

from cellar_client.errors import CellarError, StateIncompatible, from_error

# Metadata of calls and streams about sessions: what a balancer may choose the server by.
AFFINITY_KEY = "cellar-session"


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


def sampling(
    *,
    seed: int | None,
    max_steps: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    stop: Sequence[str],
) -> sampling_pb2.Sampling:
    return sampling_pb2.Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, max_steps=max_steps, stop=stop
    )
