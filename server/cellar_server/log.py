"""Logging: one line an event, on standard error, for people or as JSON. What an event is about goes along as fields;
inputs, outputs, conditions and tokens never do."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

# What a line may say of its event beside its message. request: the caller's `x-request-id`; trace: of its
# `traceparent`; error_id: under which the caller was told of a fault; caller: a name, never a token.
FIELDS = ("caller", "session", "model", "version", "request", "trace", "reason", "error_id")


def about(**fields: Any) -> dict[str, Any]:
    """Fields of a log line, as `extra=`; what is empty is left out. TypeError for a field that no line has."""
    unknown = fields.keys() - set(FIELDS)
    if unknown:
        raise TypeError(f"a log line has no field {sorted(unknown)[0]!r}")
    return {name: value for name, value in fields.items() if value not in ("", None)}


class JsonLines(logging.Formatter):
    """A JSON object a line: time (UTC), level, logger, message, the fields it has, and the exception's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class Console(logging.Formatter):
    """A line for people; what its message does not say of caller and request stands behind it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        given = record.__dict__
        behind = " ".join(f"{name}={given[name]}" for name in ("caller", "request", "trace") if name in given)
        line = super().formatMessage(record)
        return f"{line} ({behind})" if behind else line


def set_up(level: str, format: str = "console") -> None:
    """Sends the server's log to standard error, at `level` and above, and what the exporter of traces warns of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else Console())
    for name, least in (("cellar_server", level.upper()), ("opentelemetry", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least)
        logger.propagate = False
