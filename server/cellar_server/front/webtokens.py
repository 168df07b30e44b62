"""JSON Web Tokens of one issuer, checked by the public keys in its JWKS file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.config import Config
from cellar_server.errors import CellarError
from cellar_server.runtime.base import StartupError

log = logging.getLogger("cellar_server.front")

# Tokens whose signature was checked and whose time is not over: to check one takes longer than a small run.
MAX_KNOWN = 10_000
# Which signatures a key of each type may make, so that no key is ever taken for one of another type.
_FAMILIES = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("Ed",)}
REQUIRED = ["exp", "iss", "aud", "sub"]


class WebTokens:
    """The keys of an issuer. `subject` is who a token is of."""

    def __init__(self, config: Config) -> None:
        self._issuer, self._audience = config.jwt_issuer, config.jwt_audience
        self._leeway_s = config.jwt_leeway_s
        self._keys = _read(Path(config.jwks), config.jwt_algorithms.split(","))
        self._known: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def subject(self, token: str, now_s: float) -> str:
        """The `sub` of a token whose signature, issuer, audience and time are right. now_s: seconds since the epoch.
        CellarError UNAUTHENTICATED."""
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is not None and now_s < known[1]:
            return known[0]
        claims = self._claims(token, is_timely=True)
        self._known[digest] = claims["sub"], int(claims["exp"]) + self._leeway_s
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return claims["sub"]

    def issued_to(self, token: str) -> str:
        """As `subject`, for a call that began while the token was valid: its end does not matter."""
        known = self._known.get(hashlib.sha256(token.encode()).digest())
        return known[0] if known is not None else self._claims(token, is_timely=False)["sub"]

    def _claims(self, token: str, *, is_timely: bool) -> dict[str, Any]:
        import jwt

        try:
            key, algorithms = self._key_of(jwt.get_unverified_header(token).get("kid"))
            return jwt.decode(
                token,
                key,
                algorithms=algorithms,  # of the key, never what the token says of itself
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway_s,
                options={"require": REQUIRED, "verify_exp": is_timely},
            )
        except jwt.ExpiredSignatureError:
            raise CellarError(Reason.UNAUTHENTICATED, "the call's token has expired") from None
        except (jwt.PyJWTError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            log.debug("a token was refused: %r", error)
            raise CellarError(
                Reason.UNAUTHENTICATED, "the call's bearer token is not one that this server takes"
            ) from None

    def _key_of(self, kid: str | None) -> tuple[Any, list[str]]:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys[kid]


def _read(path: Path, allowed: list[str]) -> dict[str | None, tuple[Any, list[str]]]:
    """Public keys with the signatures that each may make, by their ids. StartupError."""
    try:
        import jwt
    except ImportError:
        raise StartupError("jwks: needs PyJWT: pip install 'PyJWT[crypto]'") from None
    keys: dict[str | None, tuple[Any, list[str]]] = {}
    try:
        for each in json.loads(path.read_text("utf-8"))["keys"]:
            if each.get("use", "sig") != "sig":
                continue
            families = _FAMILIES.get(each["kty"])
            if families is None:
                raise StartupError(f"jwks: {path} has a key of type {each['kty']!r}: it must hold public keys only")
            names = [name for name in allowed if name[:2] in families and each.get("alg", name) == name]
            if "d" in each:
                raise StartupError(f"jwks: {path} has a private key: it must hold public keys only")
            if names and each.get("kid") in keys:
                raise StartupError(f"jwks: {path} has two keys of the id {each.get('kid')!r}")
            if names:
                keys[each.get("kid")] = jwt.PyJWK(each, algorithm=names[0]).key, names
    except StartupError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError) as error:
        raise StartupError(f"jwks: {path} cannot be read: {error!r}") from None
    if not keys:
        raise StartupError(f"jwks: {path} has no key for the signatures {', '.join(allowed)}")
    return keys
