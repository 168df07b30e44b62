"""Sessions in one SQLite file: embedded, and whole after a kill."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from cellar_server.store.base import Entry, StoreError

SCHEMA = 1
# Seconds to wait for another engine of this server that writes.
BUSY_S = 5.0


class SqliteStore:
    """A connection of its own to the file, which engines of one server share.

    In WAL mode a transaction that was committed survives the process's end, however it ends. A power loss may take the
    last ones, unless `is_synced`: then each is on the disk (fsync) before `write` returns.
    """

    def __init__(self, path: Path, *, is_synced: bool = False) -> None:
        try:
            self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if is_synced else 'NORMAL'}")
            (found,) = self._connection.execute("PRAGMA user_version").fetchone()
            if found not in (0, SCHEMA):
                raise StoreError(f"{path} has schema {found}; this server knows {SCHEMA}")
            with _transaction(self._connection):
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, model TEXT NOT NULL, version INTEGER "
                    "NOT NULL, token BLOB NOT NULL, state BLOB NOT NULL, written_s REAL NOT NULL) WITHOUT ROWID"
                )
                self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}") from None

    def write(self, entries: Sequence[Entry], gone: Sequence[str]) -> None:
        rows = [(e.id, e.model, e.version, e.token, e.state, e.written_s) for e in entries]
        try:
            with _transaction(self._connection):
                self._connection.executemany("DELETE FROM sessions WHERE id = ?", [(id,) for id in gone])
                self._connection.executemany("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise StoreError(str(error)) from None

    def read(self, model: str, version: int) -> Iterator[Entry]:
        try:
            found = self._connection.execute(
                "SELECT id, model, version, token, state, written_s FROM sessions WHERE model = ? AND version = ?",
                (model, version),
            )
            for row in found:
                yield Entry(*row)
        except sqlite3.Error as error:
            raise StoreError(str(error)) from None

    def close(self) -> None:
        self._connection.close()


class _transaction:
    """BEGIN IMMEDIATE .. COMMIT, or ROLLBACK where something is raised."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            try:
                self._connection.execute("COMMIT")
                return
            except sqlite3.Error:
                self._undo()
                raise
        self._undo()

    def _undo(self) -> None:
        # a full disk has rolled back by itself
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def open_store(url: str, *, is_synced: bool = False) -> SqliteStore | None:
    """The store of a URL: `memory` is none, `sqlite:///FILE` (four slashes for an absolute path). StoreError."""
    if url == "memory":
        return None
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return SqliteStore(Path(url.removeprefix("sqlite:///")), is_synced=is_synced)
    raise StoreError(f"store: {url!r} is neither `memory` nor sqlite:///FILE")
