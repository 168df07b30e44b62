"""Sessions that move: spilled and taken up again, handed to another server, lost with a lease."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.state_pb2 import SessionState
from cellar_server.errors import CellarError
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.messages import AnswerReply, GenerateReply, GenerateRequest, StreamClosed
from cellar_server.store.base import End, Entry, Held
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.fakes.bench import Bench, reason_of
from tests.fakes.runtime import CounterRuntime, counter_model, generator_model
from tests.fakes.store import FakeStore, Shelf


class Server:
    """A bench as one server of several drives it: what the front does for ids that are not here included."""

    def __init__(self, store: FakeStore, durability: str = "step", model: Any = None, **config: Any) -> None:
        self.store = store
        self.bench = Bench(model or counter_model(), store=store, durability=durability, **config)
        self.sessions = self.bench.sessions
        self.sessions.custody.restore()

    def cycle(self) -> list[Any]:
        """The end of one cycle of the engine; what it sends."""
        self.bench.run()
        self.sessions.settle()
        self.sessions.persist()
        self.sessions.tend()
        return self.sessions.take_replies()

    def take_up(self, id: str, *others: Server, reserves: bool = False) -> CellarError | None:
        """As the front does before it asks for a session."""
        if self.bench.directory.has(id):
            return None
        known = self.store.claim([id], reserves=reserves).get(id)
        if isinstance(known, Held):
            for other in others:
                if other.bench.directory.has(id):
                    other.sessions.hand_over(id)
                    other.cycle()
            known = self.store.claim([id], reserves=reserves).get(id)
        if isinstance(known, Held):
            return CellarError(17, "held")
        if isinstance(known, End):
            return None if reserves else CellarError(17, "ended")
        if isinstance(known, Entry):
            return self.sessions.adopt([known]).get(id)
        return None

    def open(self, id: str, **options: Any) -> int:
        """Its handle on stream 1."""
        self.take_up(id, reserves=True)
        (opened,) = self.sessions.open([id], stream=1, **options)
        if isinstance(opened, CellarError):
            raise opened
        return opened.handle

    def resume(self, id: str, *others: Server) -> tuple[int, int]:
        """Its handle and its position."""
        error = self.take_up(id, *others)
        if error is not None:
            raise error
        (opened,) = self.sessions.open([id], resume=True, stream=1)
        if isinstance(opened, CellarError):
            raise opened
        return opened.handle, opened.position

    def step(self, handle: int, start: int, chunk: list[float]) -> AnswerReply:
        """The answer to one chunk."""
        self.bench.send([handle], [start], [chunk])
        return self.answer()

    def answer(self) -> AnswerReply:
        (answer,) = [reply for reply in self.cycle() if isinstance(reply, AnswerReply)]
        return answer


def why(answer: AnswerReply) -> str:
    ((_, error),) = answer.errors
    return reason_of(error)


# -- to the store and back -------------------------------------------------------------------------------------------


def test_a_full_table_spills_the_least_recently_used_and_takes_them_up_again() -> None:
    server = Server(FakeStore(), when_full="spill", max_sessions=4)
    handles = []
    for i in range(6):
        server.bench.clock.now += 1
        handles.append(server.open(f"s{i}"))
        assert server.step(handles[i], 0, [float(i)]).errors == []
    counts = server.sessions.core.counts
    assert (counts.sessions_spilled, server.sessions.core.table.num_open) == (2, 4)
    assert set(server.store.entries) == {f"s{i}" for i in range(6)}
    # its old handle says what became of it, and that it can be taken up again
    answer = server.step(handles[0], 1, [1.0])
    ((_, error),) = answer.errors
    assert (reason_of(error), error.retry_after_ms) == ("STALE_HANDLE", 1)
    handle, position = server.resume("s1")
    assert position == 1
    assert server.step(handle, 1, [1.0]).outputs.ravel().tolist() == [2]
    assert counts.sessions_taken_up == 1
    # an answer that was given before is given again, and not run again
    assert server.step(server.resume("s0")[0], 0, [0.0]).outputs.ravel().tolist() == [0]
    assert counts.sessions_ended == {}


def test_without_a_working_store_a_full_table_refuses() -> None:
    server = Server(FakeStore(), when_full="spill", max_sessions=2)
    for i in range(2):
        server.open(f"s{i}")
    server.cycle()
    server.store.is_broken = True
    server.bench.send([server.sessions.open(["s0"], resume=True, stream=1)[0].handle], [0], [[1.0]])
    server.cycle()
    (refused,) = server.sessions.open(["s2"])
    assert reason_of(refused) == "OVERLOADED"
    assert server.sessions.get("s0").position == 1


def test_a_session_that_outlived_its_limit_in_the_store_is_told_as_expired() -> None:
    server = Server(FakeStore(), max_idle_s=50)
    server.open("old")
    server.cycle()
    entry = server.store.entries["old"]
    server.store.entries["old"] = replace(entry, written_s=entry.written_s - 60)
    later = Server(FakeStore(server.store.shelf, "b", is_shared=True), max_idle_s=50)
    server.store.close()
    error = later.take_up("old")
    assert reason_of(error) == "SESSION_EXPIRED"
    later.cycle()
    assert set(later.store.shelf.ends) == {"old"}
    assert later.sessions.core.counts.sessions_expired == 1


def test_a_session_that_was_to_end_with_its_stream_has_its_grace_after_a_restart() -> None:
    server = Server(FakeStore())
    server.open("a", grace_s=30.0)
    server.open("b", grace_s=30.0)
    server.cycle()
    after = Server(FakeStore(server.store.shelf))
    after.resume("b")
    after.bench.clock.now += 31
    assert after.sessions.expire_at <= after.bench.clock.now
    after.sessions.expire()
    assert after.sessions.get("b").position == 0
    with pytest.raises(CellarError, match="nobody took it up within 30 s"):
        after.sessions.get("a")


def test_ends_are_stored_at_once_whatever_the_level() -> None:
    server = Server(FakeStore(), "interval", store_interval_s=100)
    server.open("a")
    server.open("b")
    server.cycle()
    server.sessions.close("a", b"t" * 16)
    server.cycle()
    assert set(server.store.entries) == {"b"}
    assert server.store.shelf.ends["a"].token == b"t" * 16
    assert server.store.writes[-1] == (0, 1)
    # the same id may be opened again
    handle = server.open("a")
    server.bench.clock.now += 101
    assert server.step(handle, 0, [1.0]).errors == []
    assert set(server.store.entries) == {"a", "b"}
    assert not server.store.shelf.ends


def test_no_session_leaves_the_table_before_it_is_written() -> None:
    shelf = Shelf()
    a, b = (Server(FakeStore(shelf, name, is_shared=True), "interval", store_interval_s=100) for name in "ab")
    handle = a.open("s")
    a.cycle()
    a.step(handle, 0, [1.0, 2.0])
    a.store.is_broken = True
    assert b.take_up("s", a) is not None  # asked for, and not let go of
    assert a.sessions.get("s").position == 2
    a.store.is_broken = False
    a.bench.clock.now += 5
    a.cycle()
    assert b.resume("s", a)[1] == 2
    with pytest.raises(CellarError, match="with another server now"):
        a.sessions.get("s")


# -- leases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["step", "interval"])
def test_a_server_that_lost_its_lease_neither_answers_nor_writes(durability: str) -> None:
    shelf = Shelf()
    a, b = (Server(FakeStore(shelf, name, is_shared=True), durability) for name in "ab")
    handle = a.open("s")
    a.step(handle, 0, [1.0])
    a.bench.send([handle], [1], [[10.0]])
    a.store.lapse()
    # its chunk was queued before the lease ran out: it is run, and its answer is withheld
    assert why(a.answer()) == "LEASE_LOST"
    assert why(a.step(handle, 1, [10.0])) == "LEASE_LOST"
    for verb in (lambda: a.sessions.get("s"), lambda: a.sessions.close("s"), lambda: a.sessions.fork("s")):
        with pytest.raises(CellarError) as caught:
            verb()
        assert reason_of(caught.value) == "LEASE_LOST"
    other, position = b.resume("s")
    # under `step` what was run was stored before anybody else claimed the session: sent again, it gets its answer
    assert position == (2 if durability == "step" else 1)
    assert b.step(other, 1, [10.0]).outputs.ravel().tolist() == [11]
    # the lease is there again: what the other server claimed meanwhile is lost here, whoever asks first
    a.store.renew()
    a.bench.send([handle], [2], [[10.0]])
    assert why(a.answer()) == "LEASE_LOST"
    a.cycle()
    assert not a.bench.directory.has("s")
    assert a.sessions.core.counts.sessions_ended == {29: 1}
    assert SessionState.FromString(shelf.entries["s"].state).position == 2
    assert b.step(other, 2, [1.0]).outputs.ravel().tolist() == [12]


def test_the_fence_holds_where_clocks_do_not_agree() -> None:
    """A server that believes in its lease when the others do not: its writes come under an old fence."""
    shelf = Shelf()
    a, b = (Server(FakeStore(shelf, name, is_shared=True)) for name in "ab")
    handle = a.open("s")
    a.step(handle, 0, [1.0])
    shelf.alive.discard("a")
    other, _ = b.resume("s")
    b.step(other, 1, [5.0])
    assert why(a.step(handle, 1, [10.0])) == "LEASE_LOST"
    a.cycle()
    assert not a.bench.directory.has("s")
    assert b.step(other, 2, [1.0]).outputs.ravel().tolist() == [7]


@pytest.mark.parametrize("ask", ["get", "resume", "close", "fork", "export", "open"])
def test_whoever_asks_first_after_a_gap_gets_nothing_stale(ask: str) -> None:
    """The lease is there again, and the engine has not had a cycle since."""
    shelf = Shelf()
    a, b = (Server(FakeStore(shelf, name, is_shared=True)) for name in "ab")
    handle = a.open("s", token=b"t" * 16)
    a.step(handle, 0, [1.0])
    a.store.lapse()
    other, _ = b.resume("s")
    b.step(other, 1, [5.0])
    a.store.renew()
    verbs = {
        "get": lambda: a.sessions.get("s"),
        "resume": lambda: a.sessions.open(["s"], resume=True, stream=1)[0],
        "close": lambda: a.sessions.close("s"),
        "fork": lambda: a.sessions.fork("s"),
        "export": lambda: a.sessions.export("s"),
        "open": lambda: a.sessions.open(["s"], token=b"t" * 16)[0],
    }
    try:
        found = verbs[ask]()
    except CellarError as error:
        found = error
    assert reason_of(found) == "LEASE_LOST"
    assert a.sessions.close_handles(1, [handle])[0][0] == 0
    a.cycle()
    assert b.sessions.get("s").position == 2


def test_a_lease_that_came_back_in_time_costs_nothing() -> None:
    shelf = Shelf()
    a = Server(FakeStore(shelf, "a", is_shared=True))
    handle = a.open("s")
    a.step(handle, 0, [1.0])
    a.store.lapse()
    assert why(a.step(handle, 1, [10.0])) == "LEASE_LOST"
    a.store.renew()
    answer = a.step(handle, 1, [10.0])
    assert (answer.outputs.ravel().tolist(), answer.durable) == ([11], [2])


def test_what_an_emptied_store_lost_is_written_again() -> None:
    shelf = Shelf()
    a = Server(FakeStore(shelf, "a", is_shared=True))
    handle = a.open("s")
    a.step(handle, 0, [1.0])
    for part in (shelf.entries, shelf.owners):
        part.clear()
    a.store.renew()
    a.cycle()
    assert SessionState.FromString(shelf.entries["s"].state).position == 1
    assert a.step(handle, 1, [1.0]).durable == [2]


def test_an_answer_is_withheld_while_the_claims_cannot_be_checked() -> None:
    shelf = Shelf()
    a = Server(FakeStore(shelf, "a", is_shared=True), "interval")
    handle = a.open("s")
    a.step(handle, 0, [1.0])
    a.store.renew()
    a.store.is_broken = True
    assert why(a.step(handle, 1, [1.0])) == "LEASE_LOST"
    a.store.is_broken = False
    assert a.step(handle, 1, [1.0]).outputs.ravel().tolist() == [2]


# -- generations -----------------------------------------------------------------------------------------------------


def generate(server: Server, position: int = 0, *, id: str = "g", credits: int = 32, **options: Any) -> None:
    chosen = Options(**{"temperature": 1.0, "top_k": 0, "top_p": 0.0, "seed": 3, "max_steps": 20, **options})
    condition = np.zeros(1, np.float32).tobytes()
    server.sessions.admit([GenerateRequest(object(), b"", condition, chosen, id, position, credits=credits)])


def emitted(replies: list[Any]) -> list[int]:
    """Ids in their order; an earlier call that is told to go is no error."""
    errors = [reason_of(reply.error) for reply in replies if isinstance(reply, GenerateReply) and reply.error]
    assert set(errors) <= {"CANCELLED"}
    return [id for reply in replies if isinstance(reply, GenerateReply) for id in reply.ids]


def test_a_stored_generation_goes_on_with_the_same_emissions() -> None:
    whole = Server(FakeStore(), model=generator_model())
    generate(whole)
    expected = emitted(whole.cycle())
    assert len(expected) > 5
    first = Server(FakeStore(), model=generator_model())
    generate(first, credits=4)
    assert emitted(first.cycle()) == expected[:4]
    # another server has it as it was stored, which may be earlier than what its caller holds
    second = Server(FakeStore(first.store.shelf), model=generator_model())
    assert second.sessions.get("g").position <= 4
    generate(second, 4)
    assert emitted(second.cycle()) == expected[4:]
    assert second.sessions.get("g").position == len(expected)


def test_who_goes_on_without_naming_a_seed_gets_the_one_that_it_began_with() -> None:
    whole, server = (Server(FakeStore(), model=generator_model()) for _ in range(2))
    generate(whole)
    expected = emitted(whole.cycle())
    generate(server, credits=4)
    assert emitted(server.cycle()) == expected[:4]
    # the front draws a seed where a request names none
    generate(server, 4, seed=999, is_seeded=False)
    assert emitted(server.cycle()) == expected[4:]
    generate(server, 2, seed=999)
    (refused,) = server.cycle()
    assert reason_of(refused.error) == "POSITION_CONFLICT"


def test_a_fork_of_a_generation_goes_its_own_way() -> None:
    server = Server(FakeStore(), model=generator_model())
    generate(server, credits=3)
    held = emitted(server.cycle())
    server.sessions.fork("g", "same")
    server.sessions.fork("g", "other")
    generate(server, 3)
    rest = emitted(server.cycle())
    generate(server, 3, id="same")
    assert emitted(server.cycle()) == rest
    # a fork that has emitted nothing yet may be drawn in another way
    generate(server, 3, id="other", temperature=0.0)
    assert emitted(server.cycle()) == list(range(held[-1] + 1, 9))
    generate(server, 4, id="other", temperature=1.0)
    (refused,) = server.cycle()
    assert reason_of(refused.error) == "POSITION_CONFLICT"


def test_a_generation_is_exported_and_imported() -> None:
    server = Server(FakeStore(), model=generator_model())
    generate(server, credits=3)
    held = emitted(server.cycle())
    state = server.sessions.export("g")
    assert (list(state.generation.ids), state.position) == (held, 3)
    server.sessions.import_state(state, "copy")
    generate(server, 3, id="copy")
    rest = emitted(server.cycle())
    generate(server, 3)
    assert emitted(server.cycle()) == rest
    for spoil in (
        lambda s: s.generation.ids.append(3),
        lambda s: s.generation.ids.__setitem__(0, 99),
        lambda s: setattr(s.generation, "condition", b"x"),
        lambda s: s.ClearField("generation"),
    ):
        bad = SessionState.FromString(state.SerializeToString())
        spoil(bad)
        with pytest.raises(CellarError) as caught:
            server.sessions.import_state(bad, "bad")
        assert reason_of(caught.value) == "STATE_INCOMPATIBLE"


def test_a_generation_is_handed_over_in_the_middle() -> None:
    shelf = Shelf()
    a, b = (Server(FakeStore(shelf, name, is_shared=True), model=generator_model()) for name in "ab")
    a.take_up("g", reserves=True)
    generate(a, credits=3)
    held = emitted(a.cycle())
    assert b.take_up("g", a) is None
    generate(b, 3)
    assert len(held + emitted(b.cycle())) > 5
    assert not a.bench.directory.has("g")


# -- everything at once ----------------------------------------------------------------------------------------------


class Replicas(RuleBasedStateMachine):
    """Two servers on one store against plain sums: open, step, retry, reorder, cancel, expire, fork, export and import,
    close, spill, hand over, restart, kill, a lease lost and found, a store that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf()
        self.servers = [self._server(name) for name in "ab"]
        self.taken: dict[str, list[tuple[int, list[float], list[float]]]] = {}
        self.count = 0

    def _server(self, name: str) -> Server:
        store = FakeStore(self.shelf, name, is_shared=True)
        return Server(store, "step", when_full="spill", max_sessions=3, max_queue_rows=64)

    def _name(self) -> str:
        self.count += 1
        return f"s{self.count}"

    def _resume(self, data: st.DataObject, id: str) -> tuple[Server, int]:
        """Any server, made to hold the session, and a handle there."""
        server = data.draw(st.sampled_from(self.servers))
        (other,) = [each for each in self.servers if each is not server]
        for _ in range(3):
            try:
                handle, position = server.resume(id, other)
                break
            except CellarError as error:
                if reason_of(error) not in ("LEASE_LOST", "STALE_HANDLE", "OVERLOADED"):
                    raise
                for each in self.servers:
                    each.cycle()
        assert position == self._position(id)
        return server, handle

    def _position(self, id: str) -> int:
        return sum(len(chunk) for _, chunk, _ in self.taken[id])

    def _sum(self, id: str) -> float:
        return self.taken[id][-1][2][-1] if self.taken[id] else 0.0

    def _id(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.taken)))

    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        id = self._name()
        server = data.draw(st.sampled_from(self.servers))
        server.open(id)
        server.cycle()
        self.taken[id] = []

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), is_broken=st.booleans())
    def step(self, data: st.DataObject, is_broken: bool) -> None:
        id = self._id(data)
        server, handle = self._resume(data, id)
        chunk = data.draw(st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=9))
        start, before = self._position(id), self._sum(id)
        server.store.is_broken = is_broken
        answer = server.step(handle, start, chunk)
        if is_broken:
            assert why(answer) == "STORE_FAILED"
            server.store.is_broken = False
            server.bench.clock.now += 5
            answer = server.step(handle, start, chunk)
        expected = (before + np.cumsum(chunk)).tolist()
        assert answer.outputs.ravel().tolist() == expected
        assert answer.durable == [start + len(chunk)]
        self.taken[id].append((start, chunk, expected))

    @precondition(lambda self: any(self.taken.values()))
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(id for id, taken in self.taken.items() if taken)))
        server, handle = self._resume(data, id)
        start, chunk, expected = data.draw(st.sampled_from(self.taken[id][-4:]))
        steps = server.sessions.core.counts.steps
        assert server.step(handle, start, chunk).outputs.ravel().tolist() == expected
        assert server.sessions.core.counts.steps == steps

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        id = self._id(data)
        server, handle = self._resume(data, id)
        answer = server.step(handle, self._position(id) + 1, [1.0])
        ((_, error),) = answer.errors
        assert (reason_of(error), error.expected_position) == ("POSITION_GAP", self._position(id))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id = self._id(data)
        server, handle = self._resume(data, id)
        server.bench.send([handle], [self._position(id)], [[7.0]])
        server.sessions.admit([StreamClosed(1, True)])
        assert why(server.answer()) == "CANCELLED"

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), by_export=st.booleans())
    def copy(self, data: st.DataObject, by_export: bool) -> None:
        id, new = self._id(data), self._name()
        server, _ = self._resume(data, id)
        if by_export:
            state = SessionState.FromString(server.sessions.export(id).SerializeToString())
            server = data.draw(st.sampled_from(self.servers))
            server.take_up(new, reserves=True)
            server.sessions.import_state(state, new)
        else:
            server.take_up(new, reserves=True)
            server.sessions.fork(id, new)
        server.cycle()
        self.taken[new] = list(self.taken[id])

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        id = self._id(data)
        server, _ = self._resume(data, id)
        assert server.sessions.close(id).position == self._position(id)
        server.cycle()
        del self.taken[id]
        for each in self.servers:
            assert isinstance(each.store.claim([id])[id], End)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        server = data.draw(st.sampled_from(self.servers))
        here = [id for id in self.taken if server.bench.directory.has(id)]
        expired = server.sessions.core.counts.sessions_expired
        server.bench.clock.now += 901
        for _ in range(2):
            server.sessions.expire()
            server.cycle()
        assert server.sessions.core.counts.sessions_expired == expired + len(here)
        for id in here:
            assert isinstance(self.shelf.ends[id], End)
            del self.taken[id]

    @rule(place=st.integers(0, 1))
    def kill(self, place: int) -> None:
        name = self.servers[place].store.name
        self.shelf.alive.discard(name)
        self.servers[place] = self._server(f"{name}{self.count}")

    @rule(place=st.integers(0, 1))
    def restart(self, place: int) -> None:
        old = self.servers[place]
        old.sessions.durability.close()
        old.store.close()
        self.servers[place] = self._server(f"{old.store.name}r")

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), place=st.integers(0, 1))
    def pause(self, data: st.DataObject, place: int) -> None:
        """One server is away for longer than its lease; the other one goes on with a session; it comes back."""
        paused, other = self.servers[place], self.servers[1 - place]
        id = self._id(data)
        handle = paused.resume(id, other)[0] if data.draw(st.booleans()) else 0
        paused.store.lapse()
        held, position = other.resume(id)
        chunk = [float(data.draw(st.integers(-9, 9)))]
        answer = other.step(held, position, chunk)
        expected = [self._sum(id) + chunk[0]]
        assert answer.outputs.ravel().tolist() == expected
        self.taken[id].append((position, chunk, expected))
        if handle:
            assert why(paused.step(handle, position, [99.0])) == "LEASE_LOST"
        paused.store.renew()
        if handle and data.draw(st.booleans()):
            assert why(paused.step(handle, position, [99.0])) == "LEASE_LOST"
        elif handle:
            (found,) = paused.sessions.open([id], resume=True)
            assert reason_of(found) == "LEASE_LOST"
        paused.cycle()

    @invariant()
    def agrees(self) -> None:
        for server in self.servers:
            core = server.sessions.core
            assert core.work.num_used == 0
            assert core.table.num_open <= 3
            assert core.counts.padded_steps == 0
        for id in self.taken:
            holders = [each for each in self.servers if each.bench.directory.has(id)]
            assert len(holders) <= 1
            state = SessionState.FromString(self.shelf.entries[id].state)
            assert state.position == self._position(id)


Replicas.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestReplicas = Replicas.TestCase


def test_a_batch_mate_full_of_nan_changes_nobody_s_bits() -> None:
    """Where the refusal of such inputs is switched off, rows still keep to themselves."""

    class Poisoned(CounterRuntime):
        def step(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return super().step(np.where(x == 666, np.nan, x).astype(np.float32), state)

    bench = Bench(counter_model(Poisoned()))
    a, b, c = bench.open(3)
    for t in range(3):
        bench.send([a, b, c], [t] * 3, [[1.0], [666.0], [3.0]])
        bench.run()
        answers = bench.take()
        assert answers[a, t].tolist() == [t + 1]
        assert np.isnan(answers[b, t]).all()
        assert answers[c, t].tolist() == [3 * (t + 1)]
