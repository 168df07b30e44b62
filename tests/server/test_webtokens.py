"""Whose a JSON Web Token is, and which ones are refused."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cellar_proto.v1.reason_pb2 import Reason
from cellar_server.config import Config
from cellar_server.errors import CellarError
from cellar_server.front.webtokens import WebTokens
from cellar_server.runtime.base import StartupError
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.issuer import AUDIENCE, ISSUER, Key, write_jwks

KEY = Key()
RSA = Key("RSA", "rsa")


def taken(folder: Path, *keys: dict[str, Any], **options: Any) -> WebTokens:
    write_jwks(folder / "jwks.json", *keys)
    return WebTokens(
        Config(jwks=str(folder / "jwks.json"), jwt_issuer=ISSUER, jwt_audience=AUDIENCE, **options),
    )


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> WebTokens:
    return taken(tmp_path_factory.mktemp("jwks"), KEY.jwk(), RSA.jwk(use="sig"))


def refuse(tokens: WebTokens, token: str) -> str:
    with pytest.raises(CellarError) as caught:
        tokens.subject(token, time.time())
    assert caught.value.reason == Reason.UNAUTHENTICATED
    return caught.value.message


@pytest.mark.parametrize("kind", ["RSA", "EC", "OKP"])
def test_the_subject_is_the_name(tmp_path: Path, kind: str) -> None:
    key = Key(kind)
    found = taken(tmp_path, key.jwk())
    for _ in range(2):  # the second time as it was found the first time
        assert found.subject(key.token(), time.time()) == "alice"
    assert found.subject(key.token("bob", aud=["others", AUDIENCE]), time.time()) == "bob"
    assert found.subject(key.token(nbf=None), time.time()) == "alice"


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": None},
        {"sub": None},
        {"iss": None},
        {"aud": None},
        {"iss": "https://elsewhere.example"},
        {"aud": "others"},
        {"aud": []},
        {"exp": "soon"},
        {"sub": 5},
        {"exp": float("inf")},
        {"nbf": "x"},
    ],
)
def test_a_token_without_its_claims_is_refused(tokens: WebTokens, claims: dict[str, Any]) -> None:
    subject = claims.pop("sub", "alice")
    assert refuse(tokens, KEY.token(subject, **claims)) == "the call's bearer token is not one that this server takes"


def test_time_counts_with_a_leeway(tokens: WebTokens) -> None:
    now = time.time()
    assert tokens.subject(KEY.token(exp=now - 5), now) == "alice"
    assert tokens.subject(KEY.token(nbf=now + 5), now) == "alice"
    assert refuse(tokens, KEY.token(exp=now - 15)) == "the call's token has expired"
    assert "not one" in refuse(tokens, KEY.token(nbf=now + 15))
    # one that was valid is known until its end, not beyond it
    token = KEY.token(exp=now - 8)
    assert tokens.subject(token, now) == "alice"
    assert tokens.subject(token, now) == "alice"
    time.sleep(2.1)
    assert refuse(tokens, token) == "the call's token has expired"
    # for a call that began before it does not matter
    assert tokens.issued_to(token) == "alice"
    assert tokens.issued_to(KEY.token(exp=now - 1000)) == "alice"
    with pytest.raises(CellarError):
        tokens.issued_to(Key().token())


def _part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_signatures_are_those_of_the_keys_alone(tokens: WebTokens) -> None:
    good = KEY.token()
    head, body, signature = good.split(".")
    claims = jwt.decode(good, options={"verify_signature": False})
    none = f"{_part({'alg': 'none', 'kid': '1'})}.{body}."
    pem = KEY.private.public_key().public_bytes(*_pem())
    # HMAC with the public key as its secret, where a careless reader takes the token's word for its algorithm
    confused = _hmac(pem, {"alg": "HS256", "typ": "JWT", "kid": "1"}, body)
    other = _part({**claims, "sub": "root"})
    forged = [
        none,
        none + signature,
        confused,
        f"{head}.{other}.{signature}",  # other claims under the signature
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-4]}AAAA",
        Key().token(),  # another key of the same id
        RSA.token(headers={"kid": "1"}),  # a signature of another key than it says
        KEY.token(headers={"kid": "rsa"}),
        Key("EC", "unknown").token(),
        Key("EC", None).token(),  # none of several
        KEY.token(headers={"kid": "rsa", "jwk": KEY.jwk()}),  # brings its own key
        KEY.token(headers={"crit": ["exp"]}),
        good + ".x",
        "..",
        "",
        "x.y.z",
        "é.é.é",
        f"{_part({'alg': 'ES256', 'kid': ['1']})}.{body}.{signature}",
        base64.urlsafe_b64encode(b"[" * 9000).rstrip(b"=").decode() + f".{body}.{signature}",
    ]
    for token in forged:
        refuse(tokens, token)
    assert tokens.subject(good, time.time()) == "alice"


def _pem() -> tuple[Any, Any]:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Encoding.PEM, PublicFormat.SubjectPublicKeyInfo


def _hmac(secret: bytes, head: dict[str, str], body: str) -> str:
    import hashlib
    import hmac

    signed = f"{_part(head)}.{body}"
    digest = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


@given(
    st.text(max_size=200) | st.builds(".".join, st.lists(st.text("ABab01-_=.", max_size=40), min_size=3, max_size=3))
)
def test_whatever_is_no_token_is_refused(tokens: WebTokens, text: str) -> None:
    refuse(tokens, text)


def test_only_the_algorithms_named_are_taken(tmp_path: Path) -> None:
    both = taken(tmp_path, KEY.jwk(), RSA.jwk(), jwt_algorithms="RS256")
    assert both.subject(RSA.token(), time.time()) == "alice"
    refuse(both, KEY.token())
    pinned = taken(tmp_path, RSA.jwk(alg="PS256"))
    refuse(pinned, RSA.token())
    RSA.algorithm = "PS256"
    try:
        assert pinned.subject(RSA.token(), time.time()) == "alice"
    finally:
        RSA.algorithm = "RS256"


def test_a_single_key_needs_no_id(tmp_path: Path) -> None:
    key = Key("EC", None)
    assert taken(tmp_path, key.jwk()).subject(key.token(), time.time()) == "alice"


def test_files_of_keys_that_are_none_end_the_start(tmp_path: Path) -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "1"}
    for keys, why in (
        ([secret], "public keys only"),
        ([KEY.jwk(is_private=True)], "private key"),
        ([KEY.jwk(), KEY.jwk()], "two keys of the id '1'"),
        ([], "no key for the signatures"),
        ([KEY.jwk(use="enc")], "no key for the signatures"),
        ([{**KEY.jwk(), "x": "!"}], "cannot be read"),
        ([{"kid": "1"}], "cannot be read"),
        (["text"], "cannot be read"),
    ):
        with pytest.raises(StartupError, match=why):
            taken(tmp_path, *keys)  # type: ignore[arg-type]
    for text in ("", "[]", "{}", '{"keys": 5}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(StartupError, match="cannot be read"):
            WebTokens(Config(jwks=str(tmp_path / "bad.json"), jwt_issuer="i", jwt_audience="a"))
