"""What a caller, or all callers of a model together, may take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

from cellar_server.runtime.base import StartupError
from cellar_server.tables import option


@dataclass(frozen=True)
class Limits:
    """A table [caller_limits."NAME"] or [model_limits."NAME"]. 0 is no limit of this kind: then the server's own holds
    alone."""

    max_sessions: int = option(0, "sessions open at a time: a new one over it is OVERLOADED, those that are open stay")
    max_chunks_in_flight: int = option(
        0, "chunks, whole sequences and generations unanswered at a time, over all streams and calls"
    )
    max_message_bytes: int = option(0, "bytes in one message: a larger one is TOO_LARGE, and its stream goes on")
    max_steps_per_s: float = option(
        0.0, "steps (bytes, for text; emissions, for generation) a second, as a mean: what is over it is OVERLOADED"
    )
    burst_steps: int = option(
        0,
        "steps that may come at once after a pause; 0: a second's worth. A larger chunk waits for as many",
    )
    max_generation_steps: int = option(
        0, "emissions of one generation: a request for more is INVALID_SAMPLING, one that names no number gets so many"
    )

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if not 0 <= value < 1e15:
                raise StartupError(f"limits: {each.name} is a number, 0 or more, not {value!r}")

    @property
    def burst(self) -> float:
        """Steps that may come at once."""
        return float(self.burst_steps or max(1.0, self.max_steps_per_s))

    @cached_property
    def is_metered(self) -> bool:
        """Something beside the number of sessions is limited."""
        return dataclasses.replace(self, max_sessions=0) != NONE


NONE = Limits()


@dataclass(frozen=True)
class LimitTable:
    """Whose limits are what: of callers and of models, by their names or patterns of them. A name's own table counts,
    else that of the first pattern that fits, else nothing is limited."""

    callers: Mapping[str, Limits] = field(default_factory=dict)
    models: Mapping[str, Limits] = field(default_factory=dict)

    def of_caller(self, name: str) -> Limits:
        """Where nobody is asked who they are, all callers are one, of the name ""."""
        return _find(self.callers, name)

    def of_model(self, name: str) -> Limits:
        """Of all its versions and all callers together."""
        return _find(self.models, name)

    @property
    def limits_sessions(self) -> bool:
        """Somebody's sessions have to be counted."""
        return any(each.max_sessions for each in (*self.callers.values(), *self.models.values()))


def _find(tables: Mapping[str, Limits], name: str) -> Limits:
    found = tables.get(name)
    if found is None and tables:
        found = next((limits for pattern, limits in tables.items() if fnmatchcase(name, pattern)), None)
    return NONE if found is None else found
