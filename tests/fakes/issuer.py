"""An issuer of JSON Web Tokens for tests."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.example", "cellar"
_KINDS = {"RSA": RSAAlgorithm, "EC": ECAlgorithm, "OKP": OKPAlgorithm}


class Key:
    """A key of an issuer. kind: RSA, EC (P-256) or OKP (Ed25519)."""

    def __init__(self, kind: str = "EC", kid: str | None = "1") -> None:
        self.kind, self.kid = kind, kid
        makers = {
            "RSA": lambda: rsa.generate_private_key(65537, 2048),
            "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
            "OKP": ed25519.Ed25519PrivateKey.generate,
        }
        self.private: Any = makers[kind]()
        self.algorithm = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}[kind]

    def jwk(self, *, is_private: bool = False, **more: str) -> dict[str, Any]:
        """The key as JSON."""
        key = self.private if is_private else self.private.public_key()
        found = {**_KINDS[self.kind].to_jwk(key, as_dict=True), **more}
        return found if self.kid is None else {**found, "kid": self.kid}

    def token(self, subject: Any = "alice", *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token that is valid for a minute, but for what the claims say; None leaves a claim out."""
        whole = {
            "sub": subject,
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": time.time() + 60,
            "nbf": time.time() - 1,
            **claims,
        }
        whole = {name: value for name, value in whole.items() if value is not None}
        named = {} if self.kid is None else {"kid": self.kid}
        return jwt.PyJWS().encode(
            json.dumps(whole).encode(), self.private, self.algorithm, headers={**named, **(headers or {})}
        )


def write_jwks(path: Path, *keys: dict[str, Any]) -> None:
    """Replaces a JWKS file as a whole."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"keys": list(keys)}))
    partial.replace(path)
