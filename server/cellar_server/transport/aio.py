"""The transport that needs no compiler: grpc.aio."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from cellar_server.transport.base import OPTIONS, Transport


def open_aio(*, max_message_bytes: int, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> Transport:
    """A grpc.aio server that does not listen yet."""
    sizes = [("grpc.max_receive_message_length", max_message_bytes), ("grpc.max_send_message_length", -1)]
    return grpc.aio.server(options=[*sizes, *OPTIONS], interceptors=list(interceptors))
