"""The server's certificate, its key and the authorities of its callers, read again when their files change."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cellar_server.config import Config
from cellar_server.runtime.base import StartupError

log = logging.getLogger("cellar_server")

# Before its end a certificate is warned of in the log, at each reading.
WARN_BEFORE = timedelta(days=14)


@dataclass(frozen=True)
class Pems:
    """What a transport makes its credentials of, in PEM. chain: the server's certificate, then those between it and its
    authority; key: its private key; client_ca: authorities of callers, empty where callers need no certificate."""

    chain: bytes
    key: bytes = field(repr=False)
    client_ca: bytes = b""

    @property
    def asks_for_certificates(self) -> bool:
        """A caller must present a certificate of `client_ca`."""
        return bool(self.client_ca)


def read_pems(config: Config, now: datetime | None = None) -> Pems:
    """The files of a configuration that names a certificate. StartupError where one cannot be read, the key is another
    certificate's, or a certificate is not valid now."""
    chain = _read("tls_cert", config.tls_cert)
    key = _read("tls_key", config.tls_key)
    client_ca = _read("tls_client_ca", config.tls_client_ca) if config.tls_client_ca else b""
    _check(config, chain, key, client_ca, now or datetime.now(UTC))
    return Pems(chain, key, client_ca)


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StartupError(f"{name}: {path} cannot be read: {error}") from None


def _check(config: Config, chain: bytes, key: bytes, client_ca: bytes, now: datetime) -> None:
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise StartupError("tls_cert: needs cryptography: pip install 'PyJWT[crypto]'") from None
    certificates = _certificates("tls_cert", config.tls_cert, chain)
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError, _unsupported()) as error:
        raise StartupError(f"tls_key: {config.tls_key} is no private key without a passphrase: {error}") from None
    try:
        is_its = private.public_key() == certificates[0].public_key()
    except (ValueError, _unsupported()) as error:
        raise StartupError(f"tls_cert: {config.tls_cert} has a key of an unknown kind: {error}") from None
    if not is_its:
        raise StartupError(f"tls_key: {config.tls_key} is not the key of the first certificate in {config.tls_cert}")
    for each in certificates:
        begin, end = each.not_valid_before_utc, each.not_valid_after_utc
        if not begin <= now <= end:
            raise StartupError(f"tls_cert: {config.tls_cert}: a certificate is valid from {begin} to {end} only")
        if end - now < WARN_BEFORE:
            log.warning("tls_cert: a certificate in %s ends on %s", config.tls_cert, end)
    if client_ca:
        _certificates("tls_client_ca", config.tls_client_ca, client_ca)


def _unsupported() -> type[Exception]:
    from cryptography.exceptions import UnsupportedAlgorithm

    return UnsupportedAlgorithm


def _certificates(name: str, path: str, pem: bytes) -> list[Any]:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(pem)
    except ValueError as error:
        raise StartupError(f"{name}: {path} holds no certificate: {error}") from None


class Certificates:
    """The PEMs in use. `reload` puts new ones in their place, for the handshakes that come after it."""

    def __init__(self, config: Config) -> None:
        self.pems = read_pems(config)
        self._given: list[Any] = []  # to native transports

    def reload(self, config: Config) -> None:
        """StartupError where the new files cannot be used: the old ones stay."""
        pems = self.pems = read_pems(config)
        for given in self._given:
            given.replace(pems.chain, pems.key, pems.client_ca)

    def for_grpc(self) -> Any:
        """Credentials of a grpc.aio server, which asks for the PEMs at each handshake."""
        import grpc

        given = self.pems

        def made(pems: Pems) -> Any:
            return grpc.ssl_server_certificate_configuration([(pems.key, pems.chain)], pems.client_ca or None)

        def fresh() -> Any:
            nonlocal given
            pems = self.pems
            if pems is given:
                return None  # as before
            given = pems
            return made(pems)

        return grpc.dynamic_ssl_server_credentials(made(given), fresh, given.asks_for_certificates)

    def for_native(self) -> Any:
        """Credentials of the native transport, in which `reload` replaces the PEMs."""
        from cellar_server.transport import _native

        pems = self.pems
        self._given.append(_native.Certificates(pems.chain, pems.key, pems.client_ca))
        return self._given[-1]
