"""Reasons as gRPC statuses: one table, and the one place where calls are aborted."""

from __future__ import annotations

import logging
import re
import threading
from typing import NoReturn

import grpc
from cellar_proto.v1.reason_pb2 import Reason

from cellar_server.errors import CellarError
from cellar_server.log import about
from cellar_server.sessions.core import new_error_id

log = logging.getLogger("cellar_server.front")

_PLAIN = re.compile(r"[\x21-\x7e]{1,128}")
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-")
# Calls that ended with an error since the process began, by Reason.
FAILED_CALLS: dict[int, int] = {}
_counting = threading.Lock()
# Trailing metadata that carries the serialised Error of a call that failed as a whole.
ERROR_KEY = "cellar-error-bin"

_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
CODES: dict[int, grpc.StatusCode] = {
    Reason.INVALID_REQUEST: _INVALID,
    Reason.DTYPE_MISMATCH: _INVALID,
    Reason.SHAPE_MISMATCH: _INVALID,
    Reason.EMPTY_INPUT: _INVALID,
    Reason.NON_FINITE_INPUT: _INVALID,
    Reason.OUT_OF_VOCABULARY: _INVALID,
    Reason.INVALID_TEXT: _INVALID,
    Reason.INVALID_CONDITION: _INVALID,
    Reason.TOO_LARGE: _INVALID,
    Reason.UNSUPPORTED: _PRECONDITION,
    Reason.DUPLICATE_SESSION: _INVALID,
    Reason.MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.MODEL_BROKEN: _PRECONDITION,
    Reason.SESSION_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.SESSION_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.SESSION_EXPIRED: grpc.StatusCode.NOT_FOUND,
    Reason.SESSION_CLOSED: grpc.StatusCode.NOT_FOUND,
    Reason.STALE_HANDLE: _PRECONDITION,
    Reason.POSITION_GAP: _PRECONDITION,
    Reason.POSITION_CONFLICT: _PRECONDITION,
    Reason.ANSWER_EXPIRED: _PRECONDITION,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.CANCELLED: grpc.StatusCode.CANCELLED,
    Reason.SHUTTING_DOWN: grpc.StatusCode.UNAVAILABLE,
    Reason.RUN_FAILED: grpc.StatusCode.INTERNAL,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
    Reason.NOT_OWNER: grpc.StatusCode.PERMISSION_DENIED,
    Reason.LEASE_LOST: grpc.StatusCode.ABORTED,
    Reason.SESSION_LOST: grpc.StatusCode.DATA_LOSS,
    Reason.STATE_INCOMPATIBLE: _PRECONDITION,
    Reason.INVALID_SAMPLING: _INVALID,
    Reason.STORE_FAILED: grpc.StatusCode.UNAVAILABLE,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.MODEL_BUSY: _PRECONDITION,
    Reason.NOT_ALLOWED: grpc.StatusCode.PERMISSION_DENIED,
}


def count_failure(error: CellarError, count: int = 1) -> None:
    """So many calls end with an error; any thread may say so."""
    with _counting:
        FAILED_CALLS[error.reason] = FAILED_CALLS.get(error.reason, 0) + count


def error_metadata(error: CellarError) -> tuple[tuple[str, bytes]]:
    """The trailing metadata of a call that fails with an error."""
    return ((ERROR_KEY, error.to_proto().SerializeToString()),)


def of_request(context: grpc.aio.ServicerContext | None) -> dict[str, str]:
    """What a call's metadata says of its request, for the log: `x-request-id` as it is, where it is short and plain,
    and the trace of `traceparent`."""
    found: dict[str, str] = {}
    for key, value in (context.invocation_metadata() if context is not None else None) or ():
        if key == "x-request-id" and isinstance(value, str) and _PLAIN.fullmatch(value):
            found["request"] = value
        elif key == "traceparent" and isinstance(value, str) and (match := _TRACE.match(value)):
            found["trace"] = match[1]
    return found


async def abort(context: grpc.aio.ServicerContext, error: CellarError, text: str = "") -> NoReturn:
    """Ends a call with an error's code, its message (or `text` in its place) and details."""
    count_failure(error)
    if log.isEnabledFor(logging.DEBUG):
        reason = Reason.Name(error.reason)
        extra = about(reason=reason, error_id=error.error_id, **of_request(context))
        log.debug("a call ended with %s", reason, extra=extra)
    await context.abort(CODES[error.reason], text or error.message, error_metadata(error))
    raise AssertionError("abort returned")


def unforeseen(what: str, context: grpc.aio.ServicerContext | None = None) -> CellarError:
    """Logs the exception being handled in a call under an id; the error that names the id alone."""
    error_id = new_error_id()
    log.exception("%s [%s]", what, error_id, extra=about(error_id=error_id, **of_request(context)))
    return CellarError(Reason.INTERNAL, f"the server failed; its log has the fault as {error_id}", error_id=error_id)
