"""The server's configuration: flags over environment over defaults. The environment is read here and nowhere else."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellar_server.runtime.base import StartupError

ZOO = Path("models/zoo")
# A handle has 24 bits for the session's place.
MAX_SESSIONS = 1 << 24


def _option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    """What a server is told at its start. A field is a flag (--max-sessions) and a variable (CELLAR_MAX_SESSIONS)."""

    listen: str = _option("127.0.0.1:50051", "address to listen on, HOST:PORT; port 0 takes a free one")
    transport: str = _option(
        "auto",
        "what moves the messages: aio (grpc.aio), native (needs `make native`), or auto: native where it is built",
        ("auto", "aio", "native"),
    )
    models: Path = _option(ZOO, "folder of models, <name>/<version>/manifest.json")
    provider: str = _option("cpu", "ONNX Runtime's execution provider", ("cpu", "cuda"))
    intra_op: int = _option(1, "threads of one run")
    spin: bool = _option(False, "let idle run threads spin: faster alone, slower beside others")
    max_sessions: int = _option(131_072, "open sessions of one model")
    max_idle_s: float = _option(900.0, "seconds without a chunk after which a session is closed")
    max_age_s: float = _option(0.0, "seconds after which a session is closed whatever happens; 0 for never")
    max_chunk: int = _option(16_384, "steps (bytes, for text) in one chunk")
    max_chunks_in_flight: int = _option(4, "unanswered chunks of one session; as many answers are kept for retries")
    answer_bytes: int = _option(65_536, "bytes of a session's kept answers of several emissions")
    max_rows_per_run: int = _option(256, "rows in one run of the runtime")
    run_budget_ms: float = _option(10.0, "milliseconds that one run should take at most")
    max_queue_rows: int = _option(16_384, "rows that wait or run, of one model")
    max_queue_bytes: int = _option(256 << 20, "bytes of inputs that wait or run, of one model")
    max_wait_s: float = _option(
        1.0,
        "seconds that live sessions wait at which new ones, generations and bulk work are refused and readiness is off",
    )
    limits: str = _option("", "TOML file of limits by caller and by model, a table [limits]; none: no such limits")
    max_message_bytes: int = _option(16 << 20, "bytes in one message")
    max_frames_in_flight: int = _option(64, "unanswered messages of one stream at which it is read no further")
    when_full: str = _option(
        "refuse",
        "what becomes of a new session where max_sessions are open: refuse it, or spill the least recently used ones "
        "into the store",
        ("refuse", "spill"),
    )
    store: str = _option(
        "memory",
        "where sessions are kept: memory, sqlite:///FILE (survives the process), redis://HOST:PORT (shared by servers)",
    )
    durability: str = _option(
        "interval",
        "when a session is stored: none, interval, or step (before each answer)",
        ("none", "interval", "step"),
    )
    store_interval_s: float = _option(0.5, "seconds between two writes with durability interval")
    store_sync: bool = _option(False, "each write is on the disk before it counts (fsync): survives a power loss")
    lease_s: float = _option(5.0, "seconds without Redis after which other servers may take up a server's sessions")
    stall_s: float = _option(30.0, "seconds in one run or one write after which a model's health is NOT_SERVING")
    tokens: str = _option(
        "",
        "file of callers, a line each: sha256 of a bearer token in hexadecimal, then a name; none: all may call",
    )
    drain_s: float = _option(10.0, "seconds that accepted work gets to finish when the server stops")
    log_level: str = _option("info", "least severe messages logged", ("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise StartupError(f"listen: {self.listen!r} is not HOST:PORT")
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name in ("max_age_s", "drain_s", "answer_bytes") else 1e-9
            if isinstance(value, int | float) and not isinstance(value, bool) and not value >= least:
                raise StartupError(f"{each.name}: {value} is too small")
            if each.name == "max_sessions" and value > MAX_SESSIONS:
                raise StartupError(f"max_sessions: {value} is over {MAX_SESSIONS}")
            if each.name == "when_full" and value == "spill" and not self.is_storing:
                raise StartupError("when_full: to spill sessions needs a store, and a durability other than none")
            if each.metadata["choices"] and value not in each.metadata["choices"]:
                raise StartupError(f"{each.name}: {value!r} is not one of {', '.join(each.metadata['choices'])}")

    @property
    def is_storing(self) -> bool:
        """Sessions outlive the process."""
        return self.store != "memory" and self.durability != "none"


def from_args(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration of a command line; StartupError for a value that cannot be."""
    from cellar_server import __version__

    parser = argparse.ArgumentParser(
        prog="cellar-server",
        description="Serve trained recurrent networks over gRPC and keep their hidden state between requests.",
        epilog="Each option may also come from the environment: --max-sessions as CELLAR_MAX_SESSIONS.",
    )
    parser.add_argument("--version", action="version", version=f"cellar-server {__version__}")
    for each in dataclasses.fields(Config):
        parser.add_argument(
            "--" + each.name.replace("_", "-"),
            help=f"{each.metadata['help']} (default {each.default})",
            metavar=each.name.upper(),
            **({"nargs": "?", "const": "true"} if isinstance(each.default, bool) else {}),
        )
    given = vars(parser.parse_args(arguments))
    values: dict[str, Any] = {}
    for each in dataclasses.fields(Config):
        text = given[each.name]
        if text is None:
            text = environment.get(f"CELLAR_{each.name.upper()}")
        if text is not None:
            values[each.name] = _convert(each.name, text, type(each.default))
    return Config(**values)


def _convert(name: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        return Path(text) if issubclass(kind, Path) else kind(text)
    except (ValueError, KeyError):
        raise StartupError(f"{name}: {text!r} is no {kind.__name__}") from None
