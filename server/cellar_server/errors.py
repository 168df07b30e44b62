"""The one error of the server below the front: a Reason, a message for people, and what helps the caller go on."""

from __future__ import annotations

from cellar_proto.v1 import reason_pb2
from cellar_proto.v1.reason_pb2 import Reason


class CellarError(Exception):
    """A refusal that reaches the caller as it stands: its message never holds internals.

    reason: why. expected_position: where the session goes on (POSITION_GAP, POSITION_CONFLICT).
    retry_after_ms: when to try again, 0 for never. error_id: the log's id of an unforeseen fault.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        expected_position: int = 0,
        retry_after_ms: int = 0,
        error_id: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.expected_position = expected_position
        self.retry_after_ms = retry_after_ms
        self.error_id = error_id

    def to_proto(self) -> reason_pb2.Error:
        """The same as a message."""
        return reason_pb2.Error(
            reason=self.reason,
            message=self.message,
            expected_position=self.expected_position,
            retry_after_ms=self.retry_after_ms,
            error_id=self.error_id,
        )

    def __repr__(self) -> str:
        return f"CellarError({reason_pb2.Reason.Name(self.reason)}: {self.message})"
