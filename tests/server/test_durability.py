"""Sessions that outlive their process: what is written when, what is said of it, and what comes back."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.state_pb2 import SessionState
from cellar_server.sessions import durability
from cellar_server.sessions.messages import AnswerReply
from cellar_server.store import open_store
from cellar_server.store.base import End, Entry, StoreError
from cellar_server.store.sqlite import SqliteStore
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.fakes.bench import Bench, reason_of
from tests.fakes.runtime import counter_model
from tests.fakes.store import FakeStore


def bench_on(store: Any, durability: str, **config: Any) -> Bench:
    """Sessions on a store, as an engine drives them."""
    bench = Bench(counter_model(), store=store, durability=durability, **config)
    bench.sessions.custody.restore()
    return bench


def cycle(bench: Bench) -> list[AnswerReply]:
    """The end of one cycle of the engine; the answers it sends."""
    bench.run()
    bench.sessions.settle()
    bench.sessions.persist()
    return [reply for reply in bench.sessions.take_replies() if isinstance(reply, AnswerReply)]


def position_in(store: FakeStore, id: str) -> int:
    return SessionState.FromString(store.entries[id].state).position


def test_under_step_what_is_answered_is_stored_in_one_transaction_a_cycle() -> None:
    store = FakeStore()
    bench = bench_on(store, "step")
    handles = bench.open(5)
    bench.send(handles, [0] * 5, [[1.0]] * 5)
    (answer,) = cycle(bench)
    assert answer.durable == answer.positions == [1] * 5
    assert store.writes == [(5, 0)]
    assert cycle(bench) == []
    assert store.writes == [(5, 0)]  # nothing changed, nothing is written


def test_under_interval_answers_do_not_wait_and_say_what_is_stored() -> None:
    store = FakeStore()
    bench = bench_on(store, "interval", store_interval_s=10)
    (a,) = bench.open()
    bench.send([a], [0], [[1.0]])
    (answer,) = cycle(bench)
    assert (answer.positions, answer.durable) == ([1], [1])  # the first write is due at once
    bench.send([a], [1], [[1.0]])
    (answer,) = cycle(bench)
    assert (answer.positions, answer.durable) == ([2], [1])
    bench.clock.now += 10
    assert cycle(bench) == []
    bench.send([a], [2], [[1.0]])
    (answer,) = cycle(bench)
    assert (answer.positions, answer.durable) == ([3], [2])
    bench.sessions.durability.close()
    (entry,) = store.entries.values()
    assert SessionState.FromString(entry.state).position == 3


def test_without_a_store_nothing_is_said() -> None:
    bench = bench_on(FakeStore(), "none")
    (a,) = bench.open()
    bench.send([a], [0], [[1.0]])
    (answer,) = cycle(bench)
    assert answer.durable == []


def test_sessions_come_back_whole() -> None:
    store = FakeStore()
    bench = bench_on(store, "step")
    a, b = bench.open(2)
    for t in range(3):
        bench.send([a, b], [2 * t, t], [[1.0, 2.0], [5.0]])
        cycle(bench)
    ids = [bench.sessions._info(slot).id for slot in range(2)]
    after = bench_on(store, "step")
    assert [after.sessions.get(id).position for id in ids] == [6, 3]
    assert [after.sessions.get(id).durable_position for id in ids] == [6, 3]
    (x,) = [o.handle for o in after.sessions.open([ids[0]], resume=True, stream=1)]
    # what was answered before the end is answered again, and not run again
    after.send([x], [4], [[1.0, 2.0]])
    (again,) = cycle(after)
    assert again.outputs.ravel().tolist() == [7, 9]
    assert after.sessions.core.counts.steps == 0
    after.send([x], [6], [[1.0]])
    (answer,) = cycle(after)
    assert answer.outputs.ravel().tolist() == [10]


def test_closed_sessions_are_gone_from_the_store_and_forks_are_in_it() -> None:
    store = FakeStore()
    bench = bench_on(store, "step")
    (a,) = bench.open()
    bench.send([a], [0], [[4.0]])
    cycle(bench)
    id = bench.sessions._info(0).id
    bench.sessions.fork(id, "fork")
    bench.sessions.close(id)
    cycle(bench)
    assert set(store.entries) == {"fork"}
    assert position_in(store, "fork") == 1


def test_what_expired_while_no_server_was_there_is_told_as_expired() -> None:
    store = FakeStore()
    bench = bench_on(store, "step", max_idle_s=50)
    (a,) = bench.open()
    bench.send([a], [0], [[4.0]])
    cycle(bench)
    (id,) = store.entries
    entry = store.entries[id]
    store.entries[id] = replace(entry, written_s=entry.written_s - 60)
    after = bench_on(store, "step", max_idle_s=50)
    with pytest.raises(Exception, match="has expired") as caught:
        after.sessions.get(id)
    assert reason_of(caught.value) == "SESSION_EXPIRED"
    cycle(after)
    assert not store.entries


def test_a_state_of_other_weights_is_left_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    bench = bench_on(store, "step")
    bench.open()
    cycle(bench)
    (id,) = store.entries
    state = SessionState.FromString(store.entries[id].state)
    state.model_sha256 = bytes(32)
    entry = store.entries[id]
    store.entries[id] = Entry(id, entry.model, entry.version, b"", state.SerializeToString(), entry.written_s)
    store.entries["torn"] = Entry("torn", entry.model, entry.version, b"", b"\xff\xff", entry.written_s)
    after = bench_on(store, "step")
    assert after.sessions.core.table.num_open == 0
    assert set(store.entries) == {id, "torn"}
    assert "other weights" in caplog.text


def test_a_store_that_fails_withholds_answers_and_loses_nothing() -> None:
    store = FakeStore()
    bench = bench_on(store, "step")
    (a,) = bench.open()
    bench.send([a], [0], [[1.0]])
    cycle(bench)
    store.is_broken = True
    bench.send([a], [1], [[1.0]])
    (answer,) = cycle(bench)
    ((row, error),) = answer.errors
    assert (row, reason_of(error), error.retry_after_ms) == (0, "STORE_FAILED", 100)
    assert (answer.lengths, len(answer.outputs), answer.durable) == ([0], 0, [1])
    # sent again while the store still fails: still withheld
    bench.send([a], [1], [[1.0]])
    (answer,) = cycle(bench)
    assert [reason_of(error) for _, error in answer.errors] == ["STORE_FAILED"]
    store.is_broken = False
    bench.clock.now += 0.2
    bench.send([a], [1], [[1.0]])
    (answer,) = cycle(bench)
    assert (answer.outputs.ravel().tolist(), answer.errors, answer.durable) == ([2], [], [2])
    assert bench.sessions.core.counts.steps == 2


def test_rows_whose_session_is_stored_are_answered_beside_those_that_are_withheld() -> None:
    store = FakeStore()
    bench = bench_on(store, "step")
    a, b = bench.open(2)
    bench.send([a, b], [0, 0], [[1.0], [2.0]])
    cycle(bench)
    store.is_broken = True
    bench.send([b], [1], [[2.0]])
    cycle(bench)
    # a is asked for what is stored
    bench.send([a, b], [0, 1], [[1.0], [2.0]])
    replies = cycle(bench)
    seen = {handle: dict(reply.errors).get(i) for reply in replies for i, handle in enumerate(reply.handles)}
    assert seen[a] is None
    assert reason_of(seen[b]) == "STORE_FAILED"


# -- SQLite ----------------------------------------------------------------------------------------------------------


def entry(id: str, state: bytes = b"s") -> Entry:
    return Entry(id, "m", 1, b"", state, 1.5, 60.0)


def end(id: str) -> End:
    return End(id, b"why", b"token", b"receipt", 2.5, 60.0)


def read(store: SqliteStore, version: int = 1) -> list[Entry]:
    return [replace(entry, fence=0) for entry in store.read("m", version)]


def test_sqlite_keeps_and_forgets(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "sessions.db")
    store.write([entry("a"), entry("b", b"old")], [])
    store.write([entry("b", b"new"), Entry("c", "m", 2, b"t", b"s", 2.0)], [end("a"), end("nobody")])
    store.close()
    again = open_store(f"sqlite:///{tmp_path}/sessions.db")
    assert again is not None
    assert isinstance(again, SqliteStore)
    assert read(again) == [entry("b", b"new")]
    assert read(again, 2) == [Entry("c", "m", 2, b"t", b"s", 2.0)]
    assert again.claim(["a", "never"]) == {"a": end("a")}
    again.write([entry("a")], [])  # opened again: over no more
    found = again.claim(["a"])["a"]
    assert isinstance(found, Entry)
    assert again.fence_of("a") == found.fence
    again.close()


def test_sqlite_drops_what_outlived_its_time_and_is_not_claimed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "sessions.db")
    store.write([entry("claimed"), entry("left")], [end("over")])
    store.claim(["claimed"])
    assert store.purge(61.0) == []
    assert store.purge(63.0) == [("m", 1)]
    assert store.claim(["left", "over"]) == {}
    assert [e.id for e in read(store)] == ["claimed"]
    store.close()


def test_an_end_does_not_reach_a_session_that_was_claimed_anew_under_its_id(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "sessions.db")
    store.write([entry("a")], [])
    first = store.claim(["a"])["a"]
    assert isinstance(first, Entry)
    store.claim(["a"])
    store.write([], [replace(end("a"), fence=first.fence)])
    assert [e.id for e in read(store)] == ["a"]
    store.close()


def test_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute(
            "CREATE TABLE sessions (id TEXT PRIMARY KEY, model TEXT NOT NULL, version INTEGER NOT NULL, token BLOB "
            "NOT NULL, state BLOB NOT NULL, written_s REAL NOT NULL) WITHOUT ROWID"
        )
        connection.execute("INSERT INTO sessions VALUES ('a', 'm', 1, x'', x'73', 1.5)")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    for _ in range(2):
        store = SqliteStore(tmp_path / "old.db")
        assert [(e.id, e.state) for e in read(store)] == [("a", b"s")]
        store.write([], [end("b")])
        store.close()


def test_a_full_disk_is_a_typed_error_and_nothing_of_the_transaction_stays(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "sessions.db")
    store.write([entry("a")], [])
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreError, match="full"):
        store.write([entry("b"), entry("big", bytes(1 << 20))], [end("a")])
    assert [e.id for e in store.read("m", 1)] == ["a"]
    store._connection.execute("PRAGMA max_page_count = 100000")
    store.write([entry("b")], [])
    assert [e.id for e in store.read("m", 1)] == ["a", "b"]
    store.close()


def test_a_file_that_is_no_store_or_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, it only looks long enough to be one" * 20)
    with pytest.raises(StoreError, match="not a database"):
        SqliteStore(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "newer.db") as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StoreError, match="schema 9; this server knows 2"):
        SqliteStore(tmp_path / "newer.db")
    with pytest.raises(StoreError, match="unable to open"):
        SqliteStore(tmp_path / "no" / "folder.db")
    for url in ("floppy://x", "sqlite:///", "sqlite:x"):
        with pytest.raises(StoreError, match="neither"):
            open_store(url)
    assert open_store("memory") is None


class Restarts(RuleBasedStateMachine):
    """Steps, repetitions, closes and restarts against a plain sum: an answered step is there after any restart."""

    def __init__(self) -> None:
        super().__init__()
        self.store = FakeStore()
        self.chunks: dict[str, list[float]] = {}
        self.count = 0
        self._start()

    def _start(self) -> None:
        self.bench = bench_on(self.store, "step")
        self.handles = {id: self.bench.sessions.open([id], resume=True, stream=1)[0].handle for id in self.chunks}

    @rule()
    def open(self) -> None:
        id = f"s{self.count}"
        self.count += 1
        self.handles[id] = self.bench.sessions.open([id], stream=1)[0].handle
        self.chunks[id] = []
        cycle(self.bench)

    @precondition(lambda self: self.chunks)
    @rule(data=st.data(), value=st.integers(0, 9), is_broken=st.booleans())
    def step(self, data: st.DataObject, value: int, is_broken: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.chunks)))
        start = len(self.chunks[id])
        self.store.is_broken = is_broken
        for _ in range(2):
            self.bench.send([self.handles[id]], [start], [[float(value)]])
            (answer,) = cycle(self.bench)
            if not answer.errors:
                break
            self.store.is_broken = False
            self.bench.clock.now += 1
        assert answer.outputs.ravel().tolist() == [sum(self.chunks[id]) + value]
        assert answer.durable == [start + 1]
        self.chunks[id].append(float(value))

    @precondition(lambda self: any(self.chunks.values()))
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(id for id, chunks in self.chunks.items() if chunks)))
        last = len(self.chunks[id]) - 1
        self.bench.send([self.handles[id]], [last], [[self.chunks[id][last]]])
        (answer,) = cycle(self.bench)
        assert answer.outputs.ravel().tolist() == [sum(self.chunks[id])]

    @precondition(lambda self: self.chunks)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.chunks)))
        self.bench.sessions.close(id)
        del self.chunks[id], self.handles[id]
        cycle(self.bench)

    @rule()
    def kill(self) -> None:
        self._start()
        assert {id: self.bench.sessions.get(id).position for id in self.chunks} == {
            id: len(chunks) for id, chunks in self.chunks.items()
        }
        assert self.bench.sessions.core.table.num_open == len(self.chunks)


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(max_examples=40, stateful_step_count=25)


def test_answers_are_the_same_bits_after_a_restart(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "sessions.db")
    bench = bench_on(store, "step")
    (a,) = bench.open()
    values = np.random.default_rng(0).standard_normal(6).astype(np.float32).tolist()
    bench.send([a], [0], [values[:3]])
    cycle(bench)
    id = bench.sessions._info(0).id
    bench.send([a], [3], [values[3:]])
    (straight,) = cycle(bench)
    store.close()
    again = SqliteStore(tmp_path / "sessions.db")
    after = bench_on(again, "step")
    (x,) = [o.handle for o in after.sessions.open([id], resume=True, stream=1)]
    after.send([x], [3], [values[3:]])
    (replayed,) = cycle(after)
    assert replayed.outputs.tobytes() == straight.outputs.tobytes()
    again.close()


def test_ends_that_wait_for_a_broken_store_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durability, "MAX_ENDS", 5)
    store = FakeStore()
    bench = bench_on(store, "interval")
    store.is_broken = True
    for i in range(9):
        bench.sessions.open([f"s{i}"])
        bench.sessions.close(f"s{i}")
    cycle(bench)
    store.is_broken = False
    bench.clock.now += 5
    cycle(bench)
    assert set(store.shelf.ends) == {f"s{i}" for i in range(4, 9)}
