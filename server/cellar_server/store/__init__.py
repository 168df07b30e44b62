"""Where sessions are kept so that they outlive the process."""

from __future__ import annotations

from pathlib import Path

from cellar_server.store.base import Store, StoreError


def open_store(url: str, *, is_synced: bool = False, lease_s: float = 5.0) -> Store | None:
    """The store of a URL: `memory` is none, `sqlite:///FILE` (four slashes for an absolute path), `redis://HOST:PORT`
    (`rediss://` for TLS, `unix://` for a socket). StoreError."""
    if url == "memory":
        return None
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        from cellar_server.store.sqlite import SqliteStore

        return SqliteStore(Path(url.removeprefix("sqlite:///")), is_synced=is_synced)
    if url.startswith(("redis://", "rediss://", "unix://")):
        from cellar_server.store.redis import RedisStore

        return RedisStore(url, lease_s=lease_s)
    raise StoreError(f"store: {url.partition(':')[0]!r}... is neither `memory`, sqlite:///FILE nor redis://HOST:PORT")
