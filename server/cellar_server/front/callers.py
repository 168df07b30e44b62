"""Who calls: by bearer token or certificate, with which rights, and in which scope their sessions have their ids."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.config import Config
from cellar_server.errors import CellarError
from cellar_server.front.status import abort
from cellar_server.front.webtokens import WebTokens
from cellar_server.rights import CALLING, EVERYTHING, Rights, rights_of
from cellar_server.runtime.base import StartupError
from cellar_server.sessions.directory import SCOPE_END, scoped

_LINE = re.compile(r"([0-9a-f]{64})\s+([\x21-\x7e]{1,64})")
# Names of other sources: printable, without spaces, so that no name is part of another's scope or breaks a line of log.
_NAME = re.compile(r"[\x21-\x7e]{1,200}")
# What may be asked without a name: whether the server lives.
_OPEN = "/grpc.health.v1.Health/"


@dataclass(frozen=True)
class Caller:
    """Who made a call; name "" where nobody is asked."""

    name: str
    rights: Rights

    @cached_property
    def scope(self) -> str:
        """What stands in front of the ids of the caller's sessions: another's id is another key."""
        return self.name + SCOPE_END if self.name else ""

    def id_of(self, id: str) -> str:
        """A session's id in its caller's scope."""
        return scoped(self.scope, id)

    def may_know(self, model: str) -> bool:
        """Whether a model is listed."""
        return self.rights.may_call(model) or self.rights.may_administer(model)

    def must_call(self, model: str) -> None:
        """CellarError NOT_ALLOWED, whether there is such a model or not."""
        if not self.rights.may_call(model):
            raise CellarError(Reason.NOT_ALLOWED, f"this caller may not call model {model!r}")

    def must_know(self, model: str) -> None:
        """CellarError NOT_ALLOWED, whether there is such a model or not."""
        if not self.may_know(model):
            raise CellarError(Reason.NOT_ALLOWED, f"this caller may not call model {model!r}")

    def must_administer(self, model: str) -> None:
        """CellarError NOT_ALLOWED, whether there is such a model or not."""
        if not self.rights.may_administer(model):
            raise CellarError(Reason.NOT_ALLOWED, f"this caller may not load or unload model {model!r}")

    def must_administer_all(self) -> None:
        """CellarError NOT_ALLOWED."""
        if not self.rights.administers_all:
            raise CellarError(Reason.NOT_ALLOWED, "this caller does not administer all models")

    def must_see_all(self) -> None:
        """CellarError NOT_ALLOWED."""
        if not self.rights.see_all:
            raise CellarError(Reason.NOT_ALLOWED, "this caller may see its own sessions only")


ANYBODY = Caller("", EVERYTHING)


class _Known:
    """What the files said when they were read: never changed, only replaced as a whole. StartupError."""

    def __init__(self, config: Config) -> None:
        self.by_hash = _read(Path(config.tokens)) if config.tokens else {}
        self.web_tokens = WebTokens(config) if config.jwks else None
        self.has_certificates = bool(config.tls_client_ca)
        self.is_asking = config.asks_who_calls
        self._declared = config.rights
        self._callers: dict[str, Caller] = {}

    def caller(self, name: str) -> Caller:
        """A caller with its rights, found once for each name."""
        found = self._callers.get(name)
        if found is None:
            default = CALLING if self.is_asking else EVERYTHING
            found = Caller(name, rights_of(name, self._declared) if self._declared else default)
            if len(self._callers) < 100_000:  # an issuer may know more subjects than should be kept here
                self._callers[name] = found
        return found


class Callers:
    """The callers of a server. Where it asks nobody who they are, everybody calls as nobody in particular.

    A call is by the bearer token that it carries: one of the file of hashed tokens, else a JWT. Without a token it is
    by the certificate that its connection was made with. clock: seconds since the epoch.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known = _Known(config)

    def reload(self, config: Config) -> None:
        """Reads the files again; StartupError where one is broken, and everything stays as it was."""
        self._known = _Known(config)

    @property
    def is_on(self) -> bool:
        """Calls of nobody in particular are refused."""
        return self._known.is_asking

    @property
    def are_certified(self) -> bool:
        """A caller may be known by its certificate alone."""
        return self._known.has_certificates

    def admit(self, method: str, metadata: Sequence[tuple[str, Any]] | None) -> None:
        """Refuses a call of nobody that this server knows, by what is known before it is read. CellarError
        UNAUTHENTICATED. Who comes without a token, over a connection with a certificate, is asked for its name by
        `of`."""
        known = self._known
        if known.is_asking and not method.startswith(_OPEN):
            token = _bearer(metadata)
            if token is not None:
                self._name_of_token(known, token)
            elif not known.has_certificates:
                raise CellarError(Reason.UNAUTHENTICATED, "the call carries no bearer token")

    def of(self, context: grpc.aio.ServicerContext, *, has_begun: bool = False) -> Caller:
        """The caller of a call. has_begun: a JWT may have expired since. CellarError UNAUTHENTICATED."""
        known = self._known
        metadata: Any = context.invocation_metadata()
        if known.has_certificates and _bearer(metadata) is None:
            return known.caller(_name_of_certificate(context.auth_context()))
        return self.named(metadata, has_begun=has_begun)

    def named(self, metadata: Sequence[tuple[str, Any]] | None, *, has_begun: bool = False) -> Caller:
        """The caller that a call itself names, whatever certificate it came with. CellarError UNAUTHENTICATED."""
        known = self._known
        if not known.is_asking:
            return known.caller("")
        token = _bearer(metadata)
        if token is None:
            raise CellarError(Reason.UNAUTHENTICATED, "the call carries no bearer token")
        return known.caller(self._name_of_token(known, token, has_begun=has_begun))

    def scope(self, context: grpc.aio.ServicerContext) -> str:
        """What stands in front of the ids of a call's sessions."""
        return self.of(context).scope

    def id_of(self, context: grpc.aio.ServicerContext, id: str) -> str:
        """A session's id in its caller's scope."""
        return self.of(context).id_of(id)

    def _name_of_token(self, known: _Known, token: str, *, has_begun: bool = False) -> str:
        # Looked up by its hash: how long that takes tells at most how much of a hash is right, and whoever could make
        # tokens whose hashes begin as they like would not need to. The tokens themselves are compared nowhere.
        name = known.by_hash.get(hashlib.sha256(token.encode()).hexdigest())
        if name is not None:
            return name
        if known.web_tokens is None:
            raise CellarError(Reason.UNAUTHENTICATED, "the call's bearer token is not one that this server takes")
        issued_to = known.web_tokens.issued_to(token) if has_begun else known.web_tokens.subject(token, self._clock())
        if not isinstance(issued_to, str) or not _NAME.fullmatch(issued_to):
            raise CellarError(Reason.UNAUTHENTICATED, "the subject of the call's token is no name")
        return issued_to


def _bearer(metadata: Sequence[tuple[str, Any]] | None) -> str | None:
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
            return value[7:]
    return None


def _name_of_certificate(context: Any) -> str:
    """The first subject alternative name of a verified certificate, or its common name where there is none."""
    for key in ("x509_subject_alternative_name", "x509_common_name"):
        for value in context.get(key, ()):
            name = bytes(value).decode("utf-8", "replace")
            if _NAME.fullmatch(name):
                return name
            raise CellarError(Reason.UNAUTHENTICATED, "the subject of the caller's certificate is no name")
    raise CellarError(Reason.UNAUTHENTICATED, "the caller's certificate names no subject")


class Guard(grpc.aio.ServerInterceptor):
    """Ends calls of unknown callers before any service sees them."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(details)
        if handler is None:
            return handler
        try:
            self._callers.admit(details.method, details.invocation_metadata)
        except CellarError as error:
            return _refusing(handler, error)
        return handler


def _refusing(handler: grpc.RpcMethodHandler, error: CellarError) -> grpc.RpcMethodHandler:
    """A handler of the same kind that ends every call with an error."""

    async def refuse(_: Any, context: grpc.aio.ServicerContext) -> Any:
        await abort(context, error)

    async def refuse_stream(_: Any, context: grpc.aio.ServicerContext) -> Any:
        await abort(context, error)
        yield

    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(
        refuse_stream if handler.response_streaming else refuse,
        handler.request_deserializer,
        handler.response_serializer,
    )


def _read(path: Path) -> dict[str, str]:
    """Names by hashes; StartupError for a file that cannot be read, or a line that is none."""
    names: dict[str, str] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"tokens: {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise StartupError(f"tokens: line {number} of {path} is not a sha256 in hexadecimal and a name")
        names[match[1]] = match[2]
    if not names:
        raise StartupError(f"tokens: {path} names no caller")
    return names
