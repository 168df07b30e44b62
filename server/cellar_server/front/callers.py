"""Who calls: bearer tokens, and the scope in which each caller's sessions have their ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.front.status import abort
from cellar_server.runtime.base import StartupError
from cellar_server.sessions.directory import SCOPE_END, scoped

_LINE = re.compile(r"([0-9a-f]{64})\s+([\x21-\x7e]{1,64})")
# What may be asked without a token: whether the server lives.
_OPEN = "/grpc.health.v1.Health/"


class Callers:
    """The callers that a file of hashed tokens names; without a file everybody may call, as nobody in particular.

    A caller's sessions have their ids in a scope of its own: another's id is unknown, whether it exists or not.
    """

    def __init__(self, path: Path | None) -> None:
        self._names: dict[str, str] | None = None if path is None else _read(path)

    @property
    def is_on(self) -> bool:
        return self._names is not None

    def name_of(self, metadata: Sequence[tuple[str, Any]] | None) -> str:
        """The caller's name, "" where no tokens are asked for. CellarError UNAUTHENTICATED."""
        if self._names is None:
            return ""
        for key, value in metadata or ():
            if key == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
                name = self._names.get(hashlib.sha256(value[7:].encode()).hexdigest())
                if name is not None:
                    return name
                raise CellarError(Reason.UNAUTHENTICATED, "the call's bearer token is not one of this server")
        raise CellarError(Reason.UNAUTHENTICATED, "the call carries no bearer token")

    def scope(self, context: grpc.aio.ServicerContext) -> str:
        """What stands in front of the ids of a call's sessions."""
        return self.scope_of(context.invocation_metadata())

    def scope_of(self, metadata: Sequence[tuple[str, Any]] | None) -> str:
        """The same, of what the call says of itself."""
        name = self.name_of(metadata)
        return name + SCOPE_END if name else ""

    def id_of(self, context: grpc.aio.ServicerContext, id: str) -> str:
        """A session's id in its caller's scope."""
        return scoped(self.scope(context), id)


class Guard(grpc.aio.ServerInterceptor):
    """Ends calls of unknown callers before any service sees them."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(details)
        if handler is None or details.method.startswith(_OPEN):
            return handler
        try:
            self._callers.name_of(details.invocation_metadata)
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
    return names
