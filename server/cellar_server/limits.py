"""What a caller, or all callers of a model together, may take: a table of a TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellar_server.runtime.base import StartupError


@dataclass(frozen=True)
class Limits:
    """Limits of one caller, or of one model. 0 is no limit of this kind: then the server's own holds alone."""

    max_sessions: int = 0
    """Sessions open at a time. A new one over it is OVERLOADED; those that are open stay."""

    max_chunks_in_flight: int = 0
    """Chunks, whole sequences and generations unanswered at a time, over all streams and calls."""

    max_message_bytes: int = 0
    """Bytes in one message. A larger one is TOO_LARGE, and its stream goes on."""

    max_steps_per_s: float = 0.0
    """Steps (bytes, for text; emissions, for generation) a second, as a mean."""

    burst_steps: int = 0
    """Steps that may come at once after a pause. 0: a second's worth. A larger chunk waits for a full bucket."""

    max_generation_steps: int = 0
    """Emissions of one generation. A request for more is INVALID_SAMPLING; one that names no number gets so many."""

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value, kind = getattr(self, each.name), type(each.default)
            is_right = isinstance(value, int | float) if kind is float else isinstance(value, int)
            if not is_right or isinstance(value, bool) or not 0 <= value < 1e15:
                raise StartupError(f"limits: {each.name} is a number, 0 or more, not {value!r}")

    @property
    def burst(self) -> float:
        """Size of the bucket in steps."""
        return float(self.burst_steps or max(1.0, self.max_steps_per_s))

    @staticmethod
    def from_table(table: Mapping[str, Any], where: str = "limits") -> Limits:
        """The limits of a table; StartupError for a key that is none, and for a value that cannot be."""
        known = [each.name for each in dataclasses.fields(Limits)]
        for key in table:
            if key not in known:
                raise StartupError(f"{where}: there is no {key!r}; there are {', '.join(known)}")
        return Limits(**table)


NONE = Limits()


@dataclass(frozen=True)
class LimitTable:
    """Whose limits are what."""

    caller: Limits = NONE
    """Of each caller that has none of its own. Without tokens all callers are one."""

    callers: Mapping[str, Limits] = field(default_factory=dict)
    """Of callers by their names."""

    models: Mapping[str, Limits] = field(default_factory=dict)
    """Of models by their names: all their versions and all callers together."""

    @staticmethod
    def from_table(table: Mapping[str, Any]) -> LimitTable:
        """From {caller = {...}, callers.NAME = {...}, models.NAME = {...}}; StartupError."""
        for key, value in table.items():
            if key not in ("caller", "callers", "models"):
                raise StartupError(f"limits: there is no {key!r}; there are caller, callers, models")
            if not isinstance(value, Mapping):
                raise StartupError(f"limits.{key} is a table")
        named: dict[str, dict[str, Limits]] = {}
        for kind in ("callers", "models"):
            for name, each in table.get(kind, {}).items():
                if not isinstance(each, Mapping):
                    raise StartupError(f"limits.{kind}.{name} is a table")
                named.setdefault(kind, {})[name] = Limits.from_table(each, f"limits.{kind}.{name}")
        return LimitTable(Limits.from_table(table.get("caller", {}), "limits.caller"), **named)

    @staticmethod
    def read(path: str) -> LimitTable:
        """From a TOML file with a table [limits]; "" for no limits. StartupError."""
        if not path:
            return LimitTable()
        try:
            table = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise StartupError(f"limits: {path} cannot be read: {error}") from None
        if set(table) != {"limits"}:
            raise StartupError(f"limits: {path} holds one table, [limits], not {', '.join(sorted(table)) or 'none'}")
        return LimitTable.from_table(table["limits"])

    def of_caller(self, name: str) -> Limits:
        return self.callers.get(name, self.caller)

    def of_model(self, name: str) -> Limits:
        return self.models.get(name, NONE)

    @property
    def limits_sessions(self) -> bool:
        """Somebody's sessions have to be counted."""
        return any(each.max_sessions for each in (self.caller, *self.callers.values(), *self.models.values()))
