"""How calls come in and answers go out: grpc.aio, which works everywhere, or the native transport where it is built."""

from __future__ import annotations

from typing import Any

from cellar_server.runtime.base import StartupError
from cellar_server.transport.base import Transport


def is_native_built() -> bool:
    """`make native` was run for this Python."""
    try:
        from cellar_server.transport import _native  # noqa: F401
    except ImportError:
        return False
    return True


def open_transport(name: str, *, max_message_bytes: int, interceptors: tuple[Any, ...] = ()) -> Transport:
    """The transport called aio, native or auto (native where it is built); StartupError for a native one that is not
    built. Use inside an event loop."""
    if name == "native" and not is_native_built():
        raise StartupError("transport native: it is not built for this Python (make native)")
    if name == "aio" or not is_native_built():
        from cellar_server.transport.aio import open_aio

        return open_aio(max_message_bytes=max_message_bytes, interceptors=interceptors)
    from cellar_server.transport.native import NativeServer

    return NativeServer(max_message_bytes=max_message_bytes, interceptors=interceptors)
