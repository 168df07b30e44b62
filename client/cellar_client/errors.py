"""Everything that can go wrong, one class a reason.

CellarError
├── RequestError: what was sent cannot be taken, now or later
│   ├── InvalidRequest, DtypeMismatch, ShapeMismatch, EmptyInput, NonFiniteInput, OutOfVocabulary, InvalidText
│   ├── InvalidCondition, InvalidSampling, TooLarge, Unsupported, DuplicateSession
│   └── ModelNotFound, ModelBroken, ModelBusy, Unauthenticated, NotAllowed
├── SessionError: the session is not what the caller believes it to be
│   ├── SessionNotFound, SessionExists, SessionExpired, SessionClosed, SessionLost, StaleHandle
│   ├── PositionGap, PositionConflict, AnswerExpired
│   └── NotOwner, LeaseLost, StateIncompatible
└── ServiceError: the server did not, or could not, do it
    ├── Overloaded, DeadlineExceeded, Cancelled, ShuttingDown
    ├── RunFailed, Internal
    └── Unavailable: no answer of a Cellar server at all
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from cellar_proto.v1 import reason_pb2
from cellar_proto.v1.reason_pb2 import Reason

# Trailing metadata that carries the serialised Error of a call that failed as a whole.
ERROR_KEY = "cellar-error-bin"


class CellarError(Exception):
    """A refusal. reason: the contract's Reason; expected_position: where the session goes on; retry_after_s: when to
    try again, None where that does not help; error_id: under which the server's log holds the fault."""

    reason: Reason = Reason.REASON_UNSPECIFIED

    def __init__(
        self, message: str, *, expected_position: int = 0, retry_after_s: float | None = None, error_id: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.expected_position = expected_position
        self.retry_after_s = retry_after_s
        self.error_id = error_id

    @property
    def name(self) -> str:
        """The reason's name in the contract."""
        return reason_pb2.Reason.Name(self.reason)


class RequestError(CellarError):
    """What was sent cannot be taken."""


class SessionError(CellarError):
    """The session is not what the caller believes it to be."""


class ServiceError(CellarError):
    """The server did not, or could not, do it."""


class InvalidRequest(RequestError):
    reason = Reason.INVALID_REQUEST


class DtypeMismatch(RequestError):
    reason = Reason.DTYPE_MISMATCH


class ShapeMismatch(RequestError):
    reason = Reason.SHAPE_MISMATCH


class EmptyInput(RequestError):
    reason = Reason.EMPTY_INPUT


class NonFiniteInput(RequestError):
    reason = Reason.NON_FINITE_INPUT


class OutOfVocabulary(RequestError):
    reason = Reason.OUT_OF_VOCABULARY


class InvalidText(RequestError):
    reason = Reason.INVALID_TEXT


class InvalidCondition(RequestError):
    reason = Reason.INVALID_CONDITION


class InvalidSampling(RequestError):
    reason = Reason.INVALID_SAMPLING


class TooLarge(RequestError):
    reason = Reason.TOO_LARGE


class Unsupported(RequestError):
    reason = Reason.UNSUPPORTED


class DuplicateSession(RequestError):
    reason = Reason.DUPLICATE_SESSION


class ModelNotFound(RequestError):
    reason = Reason.MODEL_NOT_FOUND


class ModelBroken(RequestError):
    reason = Reason.MODEL_BROKEN


class ModelBusy(RequestError):
    reason = Reason.MODEL_BUSY


class Unauthenticated(RequestError):
    reason = Reason.UNAUTHENTICATED


class NotAllowed(RequestError):
    reason = Reason.NOT_ALLOWED


class SessionNotFound(SessionError):
    reason = Reason.SESSION_NOT_FOUND


class SessionExists(SessionError):
    reason = Reason.SESSION_EXISTS


class SessionExpired(SessionError):
    reason = Reason.SESSION_EXPIRED


class SessionClosed(SessionError):
    reason = Reason.SESSION_CLOSED


class SessionLost(SessionError):
    reason = Reason.SESSION_LOST


class StaleHandle(SessionError):
    reason = Reason.STALE_HANDLE


class PositionGap(SessionError):
    reason = Reason.POSITION_GAP


class PositionConflict(SessionError):
    reason = Reason.POSITION_CONFLICT


class AnswerExpired(SessionError):
    reason = Reason.ANSWER_EXPIRED


class NotOwner(SessionError):
    reason = Reason.NOT_OWNER


class LeaseLost(SessionError):
    reason = Reason.LEASE_LOST


class StateIncompatible(SessionError):
    reason = Reason.STATE_INCOMPATIBLE


class Overloaded(ServiceError):
    reason = Reason.OVERLOADED


class DeadlineExceeded(ServiceError):
    reason = Reason.DEADLINE_EXCEEDED


class Cancelled(ServiceError):
    reason = Reason.CANCELLED


class ShuttingDown(ServiceError):
    reason = Reason.SHUTTING_DOWN


class RunFailed(ServiceError):
    reason = Reason.RUN_FAILED


class StoreFailed(ServiceError):
    reason = Reason.STORE_FAILED


class Internal(ServiceError):
    reason = Reason.INTERNAL


class Unavailable(ServiceError):
    """No Cellar server answered."""

    @property
    def name(self) -> str:
        """No reason of the contract: nobody gave one."""
        return "UNAVAILABLE"


def _leaves(kind: type[CellarError]) -> list[type[CellarError]]:
    return [leaf for each in kind.__subclasses__() for leaf in (_leaves(each) or [each])]


CLASSES: dict[int, type[CellarError]] = {kind.reason: kind for kind in _leaves(CellarError) if kind is not Unavailable}


def from_error(error: reason_pb2.Error) -> CellarError:
    """The exception of an error message; CellarError itself for a reason of a newer server."""
    kind = CLASSES.get(error.reason, CellarError)
    return kind(
        error.message,
        expected_position=error.expected_position,
        retry_after_s=error.retry_after_ms / 1000 if error.retry_after_ms else None,
        error_id=error.error_id,
    )


def from_rpc(error: grpc.RpcError) -> CellarError:
    """The exception of a failed call: by the Error in its trailing metadata, else by its bare code."""
    call: Any = error  # what is raised is also the call, which no type says
    for key, value in call.trailing_metadata() or ():
        if key == ERROR_KEY:
            return from_error(reason_pb2.Error.FromString(value))
    code, details = call.code(), call.details() or ""
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the call's time was over before its answer came")
    if code == grpc.StatusCode.CANCELLED:
        return Cancelled("the call was cancelled")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge(details)
    return Unavailable(f"no answer from the server ({code.name}: {details})")


def ended(error: grpc.RpcError, *, was_live: bool) -> CellarError:
    """Why a stream is over. One that this side cancelled, to go to another server, is no answer like any other. One
    whose token was good when it began (`was_live`) is begun again, with a token of now: that one may be refused."""
    found = from_rpc(error)
    if type(found) is Cancelled:
        return Unavailable("the stream was left")
    if type(found) is Unauthenticated and was_live:
        return Unavailable(f"the stream has ended: {found.message}")
    return found


@contextmanager
def typed() -> Iterator[None]:
    """Errors of gRPC as these."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc(error) from None
