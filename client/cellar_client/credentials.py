"""How a client makes itself known, and by what it knows a server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

# A file of PEM, or its content.
Pem = str | os.PathLike[str] | bytes | None
Token = str | Callable[[], str]


@dataclass(frozen=True)
class Credentials:
    """token: a bearer token, or what gives one for each call, for tokens that expire. tls: encrypted, and the server's
    certificate is checked; on wherever one of the others is given. root_certificates: authorities of servers (None:
    those that come with gRPC); certificate, key: the client's own, for servers that ask for one; server_name: in the
    server's certificate, where it is not the address."""

    token: Token = ""
    tls: bool = False
    root_certificates: Pem = None
    certificate: Pem = None
    key: Pem = None
    server_name: str = ""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call carries."""
        token = self.token() if callable(self.token) else self.token
        return (("authorization", f"Bearer {token}"),) if token else ()

    def connect(self, grpc_: Any, address: str, options: Sequence[tuple[str, Any]]) -> Any:
        """A channel of `grpc` or `grpc.aio`."""
        if not (self.tls or self.root_certificates or self.certificate or self.key or self.server_name):
            return grpc_.insecure_channel(address, options=options)
        if self.server_name:
            options = [*options, ("grpc.ssl_target_name_override", self.server_name)]
        pems = [_read(pem) for pem in (self.root_certificates, self.key, self.certificate)]
        return grpc_.secure_channel(address, grpc.ssl_channel_credentials(*pems), options=options)


def _read(pem: Pem) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()


_FLAGS = {
    "tls": "encrypt, and check the server by the authorities that come with gRPC",
    "tls_ca": "FILE of authorities of servers, PEM; encrypt",
    "tls_cert": "FILE of the caller's certificate, PEM",
    "tls_key": "FILE of its key, PEM",
    "tls_server_name": "NAME in the server's certificate, where it is not the address",
    "token_file": "FILE of a bearer token, read for each call",
}


def add_arguments(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Flags of a command; each may also come from the environment."""
    for name, help in _FLAGS.items():
        how: dict[str, Any] = {"action": "store_true"} if name == "tls" else {"metavar": help.partition(" ")[0]}
        text = help if name == "tls" else help.partition(" ")[2]
        parser.add_argument("--" + name.replace("_", "-"), help=f"{text} ({_variable(name)})", **how, **options)


def from_arguments(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """A client's arguments: of the flags, else of the environment. The token is CELLAR_TOKEN, or in a file."""
    given = {name: flags.get(name) or environment.get(_variable(name), "") for name in _FLAGS}
    file, token = given["token_file"], environment.get("CELLAR_TOKEN", "")
    return {
        "token": (lambda: Path(file).read_text().strip()) if file else token,
        "tls": str(given["tls"]).lower() in ("true", "1", "yes"),
        "root_certificates": given["tls_ca"] or None,
        "certificate": given["tls_cert"] or None,
        "key": given["tls_key"] or None,
        "server_name": given["tls_server_name"],
    }


def _variable(name: str) -> str:
    """Apart from those of a server in the same environment, whose certificate is not a client's."""
    return "CELLAR_TOKEN_FILE" if name == "token_file" else f"CELLAR_CLIENT_{name.upper()}"
