"""The server's configuration: flags over environment over a file over defaults. The environment is read here and
nowhere else."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellar_server.limits import Limits
from cellar_server.rights import Rights
from cellar_server.runtime.base import StartupError
from cellar_server.tables import kind_of, option, parse_all, refuse_unknown, table_of, value_of

ZOO = Path("models/zoo")
# A handle has 24 bits for the session's place.
MAX_SESSIONS = 1 << 24
# Signatures that a token's reader cannot make itself. HS256 and its like share a secret, "none" has no signature.
JWT_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
# Numbers that may be 0; all others are above it.
ZERO = ("max_age_s", "drain_s", "answer_bytes", "jwt_leeway_s", "trace_sample")

_option = option


@dataclass(frozen=True)
class Config:
    """What a server is told at its start. A field is a key of the file (max_sessions), a variable of the environment
    (CELLAR_MAX_SESSIONS) and a flag (--max-sessions); tables are in the file only."""

    listen: str = _option("127.0.0.1:50051", "address to listen on, HOST:PORT; port 0 takes a free one")
    transport: str = _option(
        "auto",
        "what moves the messages: aio (grpc.aio), native (needs `make native`), or auto: native where it is built",
        ("auto", "aio", "native"),
    )
    models: Path = _option(ZOO, "folder of models, <name>/<version>/manifest.json")
    provider: str = _option("cpu", "ONNX Runtime's execution provider", ("cpu", "cuda"))
    precision: str = _option(
        "float32",
        "precision of the models that have it (their manifests say so); the others are served in float32",
        ("float32", "int8"),
    )
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
    max_message_bytes: int = _option(16 << 20, "bytes in one message")
    max_frames_in_flight: int = _option(64, "unanswered messages of one stream at which it is read no further")
    max_calls_in_flight: int = _option(
        4096, "unanswered calls of one answer (Predict, Step, ModelInfer) at which more are refused"
    )
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
    insecure_listen: bool = _option(
        False, "listen beyond the loopback without TLS, or without asking callers who they are"
    )
    tls_cert: str = _option("", "file of the server's certificate and those between it and its authority, PEM")
    tls_key: str = _option("", "file of that certificate's private key, PEM, without a passphrase")
    tls_client_ca: str = _option(
        "", "file of authorities, PEM: callers must present a certificate of one of them, whose subject is their name"
    )
    tokens: str = _option(
        "",
        "file of callers, a line each: sha256 of a bearer token in hexadecimal, then a name; none: all may call",
    )
    jwks: str = _option("", "file of an issuer's public keys (JWKS): its tokens (JWT) are taken, their sub is the name")
    jwt_issuer: str = _option("", "the iss that a JWT must have")
    jwt_audience: str = _option("", "the aud that a JWT must have, or have among others")
    jwt_algorithms: str = _option(
        "RS256,PS256,ES256,EdDSA", f"signatures of a JWT that are taken, by commas, of {' '.join(JWT_ALGORITHMS)}"
    )
    jwt_leeway_s: float = _option(10.0, "seconds by which the clocks of the issuer and the server may differ")
    rights: Mapping[str, Rights] = table_of(
        Rights,
        "what callers may do, by their names or patterns of them; several that fit add up. Without any: all callers "
        "may call all models, and only where nobody is asked who they are also load and unload them",
    )
    caller_limits: Mapping[str, Limits] = table_of(
        Limits,
        "what one caller may take, by callers' names or patterns of them: its own table counts, else that of the first "
        'pattern that fits, so that "*" is each caller that has no other. Where nobody is asked who they are, all '
        "callers are one. 0 is no limit",
    )
    model_limits: Mapping[str, Limits] = table_of(
        Limits, "the same by models' names or patterns of them: what all callers together may take of one model"
    )
    drain_s: float = _option(10.0, "seconds that accepted work gets to finish when the server stops")
    log_level: str = _option("info", "least severe messages logged", ("debug", "info", "warning", "error"))
    log_format: str = _option(
        "console", "lines for people, or JSON objects with their fields, one a line", ("console", "json")
    )
    metrics_listen: str = _option(
        "",
        "address of Prometheus metrics, HOST:PORT (:PORT is on the loopback), in the clear and for everybody who "
        "reaches it; none: there are none",
    )
    traces: str = _option(
        "", "OTLP collector (gRPC) that OpenTelemetry traces go to, http://HOST:PORT; none: nothing is traced"
    )
    trace_sample: float = _option(
        0.01, "part, 0 to 1, that is traced: of the calls whose caller does not say, and of all frames of streams"
    )
    channelz: bool = _option(
        False,
        "show connections and calls by grpc.channelz.v1, to who administers all models (transport aio only)",
    )

    def __post_init__(self) -> None:
        host, _, port = self.listen.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise StartupError(f"listen: {self.listen!r} is not HOST:PORT")
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name in ZERO else 1e-9
            if isinstance(value, int | float) and not isinstance(value, bool) and not value >= least:
                raise StartupError(f"{each.name}: {value} is too small")
            if each.name == "max_sessions" and value > MAX_SESSIONS:
                raise StartupError(f"max_sessions: {value} is over {MAX_SESSIONS}")
            if each.name == "when_full" and value == "spill" and not self.is_storing:
                raise StartupError("when_full: to spill sessions needs a store, and a durability other than none")
            if each.metadata["choices"] and value not in each.metadata["choices"]:
                raise StartupError(f"{each.name}: {value!r} is not one of {', '.join(each.metadata['choices'])}")
        self._check_callers()
        self._check_what_is_shown()

    def _check_what_is_shown(self) -> None:
        colon, port = self.metrics_listen.rpartition(":")[1:]
        if self.metrics_listen and (not colon or not port.isdecimal() or int(port) > 65535):
            raise StartupError(f"metrics_listen: {self.metrics_listen!r} is not HOST:PORT")
        if self.trace_sample > 1:
            raise StartupError(f"trace_sample: {self.trace_sample} is not a part, 0 to 1")
        if self.channelz and self.transport == "native":
            raise StartupError("channelz: it shows the connections of grpc.aio: use transport aio")

    def _check_callers(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise StartupError("tls_cert and tls_key: one does not do without the other")
        if self.tls_client_ca and not self.tls_cert:
            raise StartupError("tls_client_ca: callers present certificates over TLS only, which needs tls_cert")
        if len({bool(self.jwks), bool(self.jwt_issuer), bool(self.jwt_audience)}) > 1:
            raise StartupError("jwks, jwt_issuer and jwt_audience: JWT are checked by all three, or not taken")
        for name in self.jwt_algorithms.split(","):
            if name not in JWT_ALGORITHMS:
                raise StartupError(f"jwt_algorithms: {name!r} is not one of {', '.join(JWT_ALGORITHMS)}")
        if self.insecure_listen or self.is_loopback:
            return
        beyond = f"listen: {self.listen} is beyond the loopback, and"
        otherwise = "; see docs/security.md, or set insecure_listen"
        if not self.tls_cert:
            what = (
                "tokens would travel in the clear" if self.asks_who_calls else "what is sent would travel in the clear"
            )
            raise StartupError(f"{beyond} {what}: give tls_cert and tls_key{otherwise}")
        if not self.asks_who_calls:
            what = "everybody who reaches it could call: give tokens, jwks or tls_client_ca"
            raise StartupError(f"{beyond} {what}{otherwise}")

    @property
    def is_loopback(self) -> bool:
        """Only this machine reaches the server."""
        host = self.listen.rpartition(":")[0].strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def asks_who_calls(self) -> bool:
        """Calls of nobody in particular are refused."""
        return bool(self.tokens or self.jwks or self.tls_client_ca)

    @property
    def is_storing(self) -> bool:
        """Sessions outlive the process."""
        return self.store != "memory" and self.durability != "none"


@dataclass(frozen=True)
class Settings:
    """A configuration, and where each of its values came from."""

    config: Config
    origins: Mapping[str, str]
    action: str = ""  # what is asked for in place of serving: "check" or "document"
    path: str = ""  # of the file, where there is one
    again: Callable[[], Settings] | None = None  # reads it all once more; StartupError


def from_args(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration of a command line; StartupError for a value that cannot be."""
    return read(arguments, environment).config


def read(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """The configuration of a command line, its environment and the file that either names. StartupError."""
    given = vars(_parser().parse_args(arguments))
    path = given["config"] if given["config"] is not None else environment.get("CELLAR_CONFIG", "")
    values, origins = _read_file(path) if path else ({}, {})
    for each in dataclasses.fields(Config):
        origins.setdefault(each.name, "default")
        if "table" in each.metadata:
            continue
        variable, flag = f"CELLAR_{each.name.upper()}", "--" + each.name.replace("_", "-")
        for text, origin in ((environment.get(variable), variable), (given[each.name], flag)):
            if text is not None:
                values[each.name] = _convert(each.name, text, type(each.default))
                origins[each.name] = origin
    return Settings(Config(**values), origins, given["action"] or "", path, lambda: read(arguments, environment))


def _parser() -> argparse.ArgumentParser:
    from cellar_server import __version__

    parser = argparse.ArgumentParser(
        prog="cellar-server",
        description="Serve trained recurrent networks over gRPC and keep their hidden state between requests.",
        epilog="Each option may also come from the environment, --max-sessions as CELLAR_MAX_SESSIONS, and from the "
        "file, as max_sessions. Flags are the strongest, then the environment, then the file.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cellar-server {__version__}")
    parser.add_argument("--config", metavar="FILE", help="TOML file of options and tables (or CELLAR_CONFIG)")
    for flag, action, help in (
        (
            "--check-config",
            "check",
            "print the configuration and where each value came from, and end: 0 where it can be",
        ),
        ("--print-config-docs", "document", "print what every option is, in Markdown, and end"),
    ):
        parser.add_argument(flag, dest="action", action="store_const", const=action, help=help)
    for each in dataclasses.fields(Config):
        if "table" not in each.metadata:
            how: dict[str, Any] = {"nargs": "?", "const": "true"} if isinstance(each.default, bool) else {}
            parser.add_argument(
                "--" + each.name.replace("_", "-"),
                help=f"{each.metadata['help']} (default {each.default})".replace("%", "%%"),
                metavar=each.name.upper(),
                **how,
            )
    return parser


def _read_file(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of a file, and their origins."""
    try:
        found = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StartupError(f"config: {path} cannot be read: {error}") from None
    fields = {each.name: each for each in dataclasses.fields(Config)}
    refuse_unknown(found, fields, path)
    values = {}
    for name, value in found.items():
        table = fields[name].metadata.get("table")
        if table is not None:
            values[name] = parse_all(table, value, name)
        else:
            values[name] = value_of(value, kind_of(fields[name], Config), f"{path}: {name}")
    return values, dict.fromkeys(found, path)


def _convert(name: str, text: str, kind: type[Any]) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        return Path(text) if issubclass(kind, Path) else kind(text)
    except (ValueError, KeyError):
        raise StartupError(f"{name}: {text!r} is no {kind.__name__}") from None
