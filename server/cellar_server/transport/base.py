"""What the server asks of a transport. Services are written for grpc.aio: handlers and their contexts are its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc

# Pings of callers that keep long, quiet streams open are no abuse; two servers never share a port.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.keepalive_permit_without_calls", 1),
)

# How a method's requests come in, as in incoming.h.
STREAM, SINGLE, STEP, PREDICT = range(4)
# The lane of unary calls; streams are given others.
UNARY = 0


class Transport(Protocol):
    """A server of gRPC calls, as grpc.aio's: services are added, then it listens, then it starts. name: as in the
    configuration."""

    name: str
    # what it offers comes on a thread of its own, and may be answered from any
    is_threaded: bool

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None: ...

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, Any]) -> None: ...

    def offer(self, method: str, take: Callable[[int, bytes, str, float], bool]) -> None:
        """`take` is offered the calls of a unary method before its handler is: a number, the message, the peer and the
        deadline in seconds on the monotonic clock, 0 for none. Those for which it says True are ended by `answer`."""
        ...

    def answer(self, number: int, response: bytes | None, end: Any) -> None:
        """Ends a call that was taken, with a response or without."""
        ...

    def add_insecure_port(self, address: str) -> int:
        """The port that it listens on; RuntimeError, or 0, where it cannot."""
        ...

    async def start(self) -> None: ...

    async def stop(self, grace: float | None) -> None:
        """Takes no new calls, gives the others `grace` seconds, and ends."""
        ...

    async def wait_for_termination(self, timeout: float | None = None) -> bool: ...
