"""What a request says beside its tensors. Parameters that mean nothing here are left alone, as clients expect."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.sampling_pb2 import Sampling

from cellar_server.errors import CellarError

_TRUE, _FALSE = ("true", "1"), ("false", "0")
MAX_TIMEOUT_MS = 0xFFFFFFFF


@dataclass(frozen=True)
class Parameters:
    """sequence: the correlation id, None without one; position: None where the session's own is meant; timeout_ms: 0
    for none."""

    sequence: int | str | None
    is_start: bool
    is_end: bool
    position: int | None
    timeout_ms: int
    is_bulk: bool
    all_emissions: bool | None
    wants_empty_final: bool

    @staticmethod
    def of(request: Any) -> Parameters:
        """CellarError INVALID_REQUEST names the parameter that cannot be."""
        values = {key: _value(param) for key, param in request.parameters.items()}
        sequence = values.get("sequence_id")
        if isinstance(sequence, bool | float):
            raise CellarError(Reason.INVALID_REQUEST, "sequence_id is a whole number or a string")
        timeout_us = _whole(values, "timeout") or 0
        position = _whole(values, "position")
        return Parameters(
            sequence or None,
            bool(_flag(values, "sequence_start")),
            bool(_flag(values, "sequence_end")),
            position,
            min(-(-timeout_us // 1000), MAX_TIMEOUT_MS),
            # 0 is the default level, 1 the highest; what was put behind that may wait
            (_whole(values, "priority") or 0) > 1,
            _flag(values, "all_emissions"),
            bool(_flag(values, "triton_enable_empty_final_response")),
        )


def sampling(request: Any) -> Sampling:
    """Sampling parameters, also as strings: some load generators send no floats. INVALID_SAMPLING."""
    values = {key: _value(param) for key, param in request.parameters.items()}
    made = Sampling()
    try:
        for name in ("temperature", "top_p"):
            if name in values:
                setattr(made, name, float(values[name]))
        for name in ("top_k", "seed", "max_steps"):
            if name in values:
                setattr(made, name, int(values[name]))
        if "max_tokens" in values and "max_steps" not in values:
            made.max_steps = int(values["max_tokens"])
    except (TypeError, ValueError) as error:
        raise CellarError(Reason.INVALID_SAMPLING, f"{name}: {error}") from None
    if values.get("stop"):
        made.stop.append(str(values["stop"]))
    return made


def session_id(model: str, version: int, sequence: int | str) -> str:
    """The session that a sequence of a model is. 5 and "5" are two sequences; so are those of two models."""
    kind = "i" if isinstance(sequence, int) else "s"
    name = f"oip:{model}:{version}:{kind}:{sequence}"
    if len(name) <= 128 and name.isascii() and name.isprintable():
        return name
    return f"oip:{model[:40]}:{version}:h:{hashlib.sha256(name.encode()).hexdigest()}"


def _value(param: Any) -> Any:
    kind = param.WhichOneof("parameter_choice")
    return None if kind is None else getattr(param, kind)


def _whole(values: dict[str, Any], name: str) -> int | None:
    """A parameter that counts: an integer, or its digits; None where it is absent."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CellarError(Reason.INVALID_REQUEST, f"{name} is a whole number, 0 or more, not {value!r}")
    return value


def _flag(values: dict[str, Any], name: str) -> bool | None:
    value = values.get(name)
    if value is None or isinstance(value, bool):
        return value
    if str(value).lower() in _TRUE + _FALSE:
        return str(value).lower() in _TRUE
    raise CellarError(Reason.INVALID_REQUEST, f"{name} is true or false, not {value!r}")
