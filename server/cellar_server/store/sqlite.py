"""Sessions in one SQLite file: embedded, and whole after a kill."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cellar_server.store.base import Claims, End, Entry, Known, StoreError

SCHEMA = 2
_SCHEMA = (
    "CREATE TABLE sessions (id TEXT PRIMARY KEY, model TEXT NOT NULL, version INTEGER NOT NULL, token BLOB NOT NULL, "
    "state BLOB NOT NULL, written_s REAL NOT NULL, keep_s REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE ends (id TEXT PRIMARY KEY, error BLOB NOT NULL, token BLOB NOT NULL, receipt BLOB NOT NULL, "
    "ended_s REAL NOT NULL, keep_s REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX sessions_over ON sessions (written_s + keep_s)",
    "CREATE INDEX ends_over ON ends (ended_s + keep_s)",
)
_FROM_1 = (
    "ALTER TABLE sessions ADD COLUMN keep_s REAL NOT NULL DEFAULT 1e9",
    *_SCHEMA[1:],
)
# Ids in one SELECT; SQLite takes 32,766 parameters.
_MANY = 10_000


class SqliteStore:
    """The file of one server.

    In WAL mode a transaction that was committed survives the process's end, however it ends. A power loss may take the
    last ones, unless `is_synced`: then each is on the disk (fsync) before `write` returns.
    """

    is_shared = False
    is_held = True
    term = 0

    def __init__(self, path: Path, *, is_synced: bool = False) -> None:
        self._claims = Claims()
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if is_synced else 'NORMAL'}")
            with _transaction(self._connection):
                (found,) = self._connection.execute("PRAGMA user_version").fetchone()
                if found not in (0, 1, SCHEMA):
                    raise StoreError(f"{path} has schema {found}; this server knows {SCHEMA}")
                for statement in {0: _SCHEMA, 1: _FROM_1}.get(found, ()):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
        except sqlite3.Error as error:
            raise StoreError(f"{path}: {error}") from None

    def start(self, on_wanted: Callable[[str], None]) -> None:
        """Nobody else wants what is in a file of one server."""

    def claim(self, ids: Sequence[str], *, reserves: bool = False) -> dict[str, Known]:
        found: dict[str, Known] = {}
        for at in range(0, len(ids), _MANY):
            some = ids[at : at + _MANY]
            marks = ", ".join("?" * len(some))
            for row in self._rows(f"SELECT * FROM ends WHERE id IN ({marks})", some):
                found[row[0]] = End(*row)
            for row in self._rows(f"SELECT * FROM sessions WHERE id IN ({marks})", some):
                found[row[0]] = replace(Entry(*row), fence=self._claims.add(row[0]))
        if reserves:
            for id in ids:
                if not isinstance(found.get(id), Entry):
                    self._claims.add(id)
        return found

    def fence_of(self, id: str) -> int:
        return self._claims.of(id)

    def write(self, entries: Sequence[Entry], ends: Sequence[End]) -> list[str]:
        rows = [(e.id, e.model, e.version, e.token, e.state, e.written_s, e.keep_s) for e in entries]
        # one whose id was claimed anew since is not there to be ended
        ends = [end for end in ends if end.fence == self._claims.of(end.id)]
        over = [(e.id, e.error, e.token, e.receipt, e.ended_s, e.keep_s) for e in ends]
        with self._lock:
            try:
                with _transaction(self._connection):
                    execute = self._connection.executemany
                    execute("DELETE FROM sessions WHERE id = ?", [(end.id,) for end in ends])
                    execute("INSERT OR REPLACE INTO ends VALUES (?, ?, ?, ?, ?, ?)", over)
                    execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
                    # an id that is open again is over no more
                    execute("DELETE FROM ends WHERE id = ?", [(entry.id,) for entry in entries])
            except sqlite3.Error as error:
                raise StoreError(str(error)) from None
        self._claims.drop(end.id for end in ends)
        return []

    def check(self, ids: Sequence[str]) -> tuple[list[str], list[str]]:
        return [], []

    def release(self, ids: Sequence[str]) -> None:
        self._claims.drop(ids)

    def read(self, model: str, version: int) -> Iterator[Entry]:
        for row in self._rows("SELECT * FROM sessions WHERE model = ? AND version = ?", (model, version)):
            entry = Entry(*row)
            yield replace(entry, fence=self._claims.add(entry.id))

    def purge(self, now_s: float) -> list[tuple[str, int]]:
        over = self._rows("SELECT id, model, version FROM sessions WHERE written_s + keep_s < ?", (now_s,))
        gone = [(id, model, version) for id, model, version in over if not self._claims.of(id)]
        with self._lock:
            try:
                with _transaction(self._connection):
                    self._connection.executemany("DELETE FROM sessions WHERE id = ?", [(id,) for id, *_ in gone])
                    self._connection.execute("DELETE FROM ends WHERE ended_s + keep_s < ?", (now_s,))
            except sqlite3.Error as error:
                raise StoreError(str(error)) from None
        return [(model, version) for _, model, version in gone]

    def _rows(self, statement: str, values: Sequence[object]) -> list[tuple]:
        with self._lock:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise StoreError(str(error)) from None

    def close(self) -> None:
        with self._lock:
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
