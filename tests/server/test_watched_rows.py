"""Rows of limited and traced streams: what is refused is what would be refused of the messages that they came in."""

from __future__ import annotations

from typing import Any

import numpy as np
from cellar_proto.v1.inference_pb2 import Frame, StreamResponse
from cellar_proto.v1.reason_pb2 import Reason
from cellar_server.errors import CellarError
from cellar_server.front.rations import Ration, Rations
from cellar_server.front.row_messages import frames
from cellar_server.front.watched_rows import WatchedRows
from cellar_server.limits import Limits, LimitTable
from cellar_server.sessions.directory import SCOPE_END
from cellar_server.sessions.messages import Rows, RowsReply
from cellar_server.sessions.selection import chosen
from cellar_server.sessions.timing import Timing
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.bench import Bench, Clock
from tests.fakes.runtime import counter_model

NAMES = ("alice", "bob", "")
# a handle of engine 0, and one of engine 3
MINE, OTHERS = 5, 3 << 24


class Engine:
    """What is asked of an engine; who has less than 10 ms left is late."""

    name, number = "m", 0

    def __init__(self) -> None:
        self.refused: list[Reason] = []

    def now(self) -> float:
        return 0.0

    def refusal_in(self, left_s: float, caller: int) -> CellarError | None:
        return CellarError(Reason.OVERLOADED, "late") if left_s < 0.01 else None

    def count_refused(self, error: CellarError, count: int) -> None:
        self.refused += [error.reason] * count


class Front:
    """Rows of streams 1, 2, ... of the callers NAMES, with what is written to them and what goes back to be frames."""

    def __init__(self, table: LimitTable, clock: Clock) -> None:
        self.engine = Engine()
        self.written: list[tuple[int, StreamResponse]] = []
        self.back: list[int] = []
        rations = Rations(table, clock)
        self.watched = WatchedRows(
            rations,
            lambda rows: self.back.extend(rows.frame_id.tolist()),
            lambda call, message, count: self.written.append((call, StreamResponse.FromString(message))),
        )
        for call, name in enumerate(NAMES, 1):
            self.watched.open(call, rations.of(name + SCOPE_END if name else "", "m"), None)

    def send(self, rows: Rows) -> list[int]:
        """Which frames of them may go on."""
        admitted = self.watched.admit(rows, self.engine)  # type: ignore[arg-type]
        return [] if admitted is None else admitted.frame_id.tolist()


def rows_of(rows: list[dict[str, Any]]) -> Rows:
    """Of calls, each by call, length (-1: none given), bytes, and where that matters handle and deadline."""

    def column(key: str, default: int = 0) -> np.ndarray:
        return np.array([each.get(key, default) for each in rows], np.int64)

    size = column("bytes", 4)
    return Rows(
        None,
        b"",
        Frame(),
        column("call").astype(np.uint64),
        column("call"),
        np.arange(len(rows), dtype=np.uint64),
        column("handle", MINE).astype(np.uint64),
        column("position"),
        column("length", -1),
        np.full(len(rows), -1),
        size,
        np.zeros(size.sum(), np.uint8),
        deadline=np.array([each.get("deadline", np.inf) for each in rows]),
    )


ROW = st.fixed_dictionaries(
    {
        "call": st.integers(1, 4),  # nobody limits the fourth
        "length": st.sampled_from([-1, 0, 1, 2, 7, 40]),
        "bytes": st.sampled_from([4, 4, 4, 40, 65, 66, 67, 68, 300]),
        "position": st.sampled_from([0, 1, 127, 128, 1 << 40]),
    }
)
EVENTS = st.lists(st.tuples(st.lists(ROW, min_size=1, max_size=12), st.floats(0, 0.5), st.floats(0, 1)), max_size=12)
LIMITS = st.builds(
    Limits,
    max_chunks_in_flight=st.sampled_from([0, 1, 3, 8]),
    max_steps_per_s=st.sampled_from([0.0, 10.0]),
    burst_steps=st.sampled_from([5, 20]),
    max_message_bytes=st.sampled_from([0, 80, 200]),
)


@given(st.dictionaries(st.sampled_from(["alice", "bob", "*"]), LIMITS), st.dictionaries(st.just("m"), LIMITS), EVENTS)
def test_limited_rows_and_limited_messages_agree(
    callers: dict[str, Limits], models: dict[str, Limits], events: list[tuple[list[dict[str, Any]], float, float]]
) -> None:
    """Rows come, some of those in flight are answered, time goes by; the same as messages, one after the other."""
    table, clock = LimitTable(callers, models=models), Clock()
    front = Front(table, clock)
    messages = Rations(table, clock)
    rations = [None, *(messages.of(name + SCOPE_END if name else "", "m") for name in NAMES), None]
    in_flight: list[int] = []
    for sent, pause, answered in events:
        rows = rows_of(sent)
        front.written.clear()
        taken = front.send(rows)
        expected, errors = [], []
        for number, frame in enumerate(frames(rows)):
            ration: Ration | None = rations[sent[number]["call"]]
            steps = frame.lengths[0] if frame.lengths else 1
            frame.frame_id = number
            error = None if ration is None else ration.take(1, steps, frame.ByteSize())
            if error is None:
                expected.append(number)
            else:
                errors.append((sent[number]["call"], number, error.reason, error.message))
        assert taken == expected
        said = [(call, response.frame_error) for call, response in front.written]
        assert [(call, each.frame_id, each.error.reason, each.error.message) for call, each in said] == errors
        in_flight += [sent[number]["call"] for number in taken]
        over = in_flight[: int(answered * len(in_flight))]
        in_flight = in_flight[len(over) :]
        front.watched.answer(over, [0] * len(over))
        for call in over:
            if (known := rations[call]) is not None:
                known.give_back(1)
        clock.now += pause
        for mine, theirs in zip(rations[1:4], front.watched._streams.values(), strict=False):
            assert mine is None or [m.in_flight for m in mine.meters] == [m.in_flight for m in theirs.ration.meters]  # type: ignore[union-attr]


def test_what_is_late_or_of_another_model_takes_nothing() -> None:
    front = Front(LimitTable({"*": Limits(max_steps_per_s=1e-6, burst_steps=2)}), Clock())
    rows = rows_of(
        [
            {"call": 1, "deadline": 0.005},
            {"call": 1, "handle": OTHERS},
            {"call": 1, "deadline": 60.0},
            {"call": 1},
            {"call": 1},
            {"call": 4, "deadline": 0.005},  # of nobody who is limited: its engine looks at it
        ]
    )
    taken = front.send(rows)
    assert front.back == [1]
    # their frames' numbers are those of their places
    assert taken == [2, 3, 5]
    assert [(call, each.frame_error.frame_id) for call, each in front.written] == [(1, 0), (1, 4)]
    assert front.engine.refused == [Reason.OVERLOADED] * 2
    assert "rate" in front.written[1][1].frame_error.error.message


def test_a_stream_is_forgotten_when_it_is_gone_and_all_its_rows_are_answered() -> None:
    front = Front(LimitTable({"*": Limits(max_chunks_in_flight=2)}), Clock())
    rows = rows_of([{"call": 1}, {"call": 1}, {"call": 1}])
    assert front.send(rows) == [0, 1]
    front.watched.close(1)
    front.watched.answer([1], [0])
    assert 1 in front.watched._streams
    front.watched.answer([1], [1])
    assert 1 not in front.watched._streams
    front.watched.close(2)
    assert list(front.watched._streams) == [3]
    # the places are the caller's again
    front.watched.open(9, next(iter(front.watched._streams.values())).ration, None)
    assert front.send(rows_of([{"call": 9}, {"call": 9}])) == [0, 1]


class Calls:
    def asker(self, call: int, is_step: bool) -> int:
        return call


def counted(handles: list[int], positions: list[int], timed: list[bool]) -> Rows:
    """One step of each session on stream 1."""
    n = len(handles)
    rows = rows_of([{"call": 1, "handle": h, "position": p} for h, p in zip(handles, positions, strict=True)])
    rows.to, rows.data, rows.deadline = Calls(), np.ones(n, np.float32).view(np.uint8), None
    rows.timings = np.array([Timing() if each else None for each in timed], object)
    return rows


def test_traced_rows_know_their_own_moments_on_the_short_way_and_in_the_queue() -> None:
    bench = Bench(counter_model(), max_rows_per_run=2)
    a, b, c, d, e = bench.open(5)
    short = counted([a, b], [0, 0], [False, True])
    bench.sessions.admit([short])
    assert bench.sessions.core.counts.runs == 1
    timing = short.timings[1]  # type: ignore[index]
    assert (timing.runs, timing.rows) == (1, 2)
    assert timing.taken_s == timing.began_s == timing.ended_s == bench.clock.now
    # too many for the short way, and session a twice: their order stays
    queued = counted([c, a, d, a, e], [0, 1, 0, 2, 0], [False, True, False, True, False])
    bench.sessions.admit([queued])
    begun = bench.clock.now
    while bench.sessions.has_ready:
        bench.clock.now += 1
        bench.run(1)
    first, second = queued.timings[1], queued.timings[3]  # type: ignore[index]
    assert (first.taken_s, second.taken_s) == (begun, begun)
    assert first.runs == second.runs == 1
    assert begun < first.began_s == first.ended_s < second.began_s == second.ended_s
    assert not bench.sessions.core.timings
    replies = bench.sessions.take_replies()
    assert all(isinstance(reply, RowsReply) and not reply.errors for reply in replies)
    assert sum(len(reply.call) for reply in replies) == 7


def test_rows_keep_their_timings_when_they_are_chosen_from() -> None:
    rows = counted([1, 2, 3], [0, 0, 0], [True, False, True])
    assert chosen(rows, np.array([2])).timings.tolist() == [rows.timings[2]]  # type: ignore[index]
