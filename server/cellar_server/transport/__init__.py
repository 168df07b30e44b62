"""How calls come in and answers go out: grpc.aio, which works everywhere, or the native transport where it is built."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from cellar_server.runtime.base import StartupError
from cellar_server.transport.base import Transport

SOURCES = Path(__file__).resolve().parents[2] / "native"


def is_native_built() -> bool:
    """`make native` was run for this Python."""
    try:
        from cellar_server.transport import _native  # noqa: F401
    except ImportError:
        return False
    return True


def is_native_stale(sources: Path = SOURCES) -> bool:
    """The native transport was built from other sources than those that lie beside this package, as in a clone after a
    pull. sources: their folder; where there is none, as in an installed wheel, nothing is stale."""
    from cellar_server.transport import _native

    files = sorted([*sources.glob("*.h"), *sources.glob("module.cc")])
    hashes = "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return bool(files) and getattr(_native, "sources", "") != hashlib.sha256(hashes.encode()).hexdigest()


def open_transport(name: str, *, max_message_bytes: int, interceptors: tuple[Any, ...] = ()) -> Transport:
    """The transport called aio, native or auto (native where it is built); StartupError for a native one that is not
    built, or was built from other sources. Use inside an event loop."""
    if name == "native" and not is_native_built():
        raise StartupError("transport native: it is not built for this Python (make native)")
    if name == "aio" or not is_native_built():
        from cellar_server.transport.aio import AioServer

        return AioServer(max_message_bytes=max_message_bytes, interceptors=interceptors)
    if is_native_stale():
        raise StartupError("the native transport was built from other sources: build it again (make native)")
    from cellar_server.transport.native import NativeServer

    return NativeServer(max_message_bytes=max_message_bytes, interceptors=interceptors)
