"""The short way: rows that need no queue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.reason_pb2 import Reason
from cellar_server.errors import CellarError
from cellar_server.sessions.digest import digest_of, digests
from cellar_server.sessions.messages import Rows, RowsRefused, RowsReply
from cellar_server.sessions.run import OVERLAP_S

from tests.fakes.bench import Bench
from tests.fakes.runtime import CounterRuntime, counter_model


class Transport:
    """Whom single rows are answered to."""

    def asker(self, call: int, is_step: bool) -> Any:
        return self


def rows(handles: list[int], position: int, steps: int) -> Rows:
    n = len(handles)
    data = np.ones(n * steps, np.float32).view(np.uint8)
    counts, calls = np.full(n, steps), np.arange(n).astype(np.uint64)
    none = np.full(n, -1)
    handle, start = np.array(handles, np.uint64), np.full(n, position)
    return Rows(
        Transport(), b"", Frame(), calls, np.ones(n, np.int64), calls, handle, start, counts, none, 4 * counts, data
    )


@pytest.mark.parametrize(
    ("count", "steps", "runs"),
    [
        (8, 1, [(8, 1)]),
        (8, 80, [(8, 80)]),  # 7 ms
        (8, 150, [(4, 150), (4, 150)]),  # 14 ms: too much for one run
        (1, 400, [(1, 400)]),  # 8 ms
        (8, 400, None),
    ],
)
def test_rows_run_at_once_in_one_run_or_in_two(count: int, steps: int, runs: list[tuple[int, int]] | None) -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime), run_budget_ms=10.0)  # 10 us a step and a cell
    handles = bench.open(count)
    bench.sessions.admit([rows(handles, 0, steps)])
    assert bench.sessions.has_ready == (runs is None)  # too much even for two: the queue cuts it
    if runs is not None:
        assert runtime.runs == runs[:1]
        assert bench.sessions.has_rest == (len(runs) == 2)
        bench.sessions.admit([])
        assert runtime.runs == runs
        assert not bench.sessions.has_rest
    bench.run()
    bench.sessions.settle()
    replies = bench.sessions.take_replies()
    assert all(isinstance(reply, RowsReply) for reply in replies)
    assert sorted(handle for reply in replies for handle in reply.handles.tolist()) == sorted(handles)
    for reply in replies:
        assert (reply.positions == steps).all()
        found = reply.outputs.reshape(len(reply.handles), steps)
        assert (found == np.arange(1, steps + 1)).all()


@pytest.mark.parametrize("behind", ["rows", "a frame"])
def test_what_was_too_much_runs_before_anything_that_stands_behind_it(behind: str) -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime), run_budget_ms=10.0)
    handles = bench.open(8)
    first, last = rows(handles, 0, 150), handles[-1]
    if behind == "rows":
        bench.sessions.admit([first, replace(rows([last], 150, 1), rest=b"other")])
        assert runtime.runs == [(4, 150), (4, 150), (1, 1)]
    else:
        bench.sessions.admit([first])
        bench.send([last], [150], [[1.0]])
        assert runtime.runs == [(4, 150), (4, 150)]
        bench.run()
    assert bench.take()[last, 150] == [151.0]


@pytest.mark.parametrize(
    ("most", "first", "runs"),
    [
        (8, 8, [8, 8, 8, 8]),
        (6, 8, [4, 4, 4, 4]),
        (4, 8, [4, 4, 4, 4]),
        (5, 2, [2, 4, 4, 4]),  # two came late: 6 wait, and as many run as are half of all
        (3, 6, [3, 3, 3, 3]),  # six wait, two run elsewhere: what is left waits for those that come back
    ],
)
def test_callers_whose_replies_are_sent_beside_the_next_run_make_two_groups(
    most: int, first: int, runs: list[int]
) -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime), max_rows_per_run=most)
    sessions, express = bench.sessions, bench.sessions.express
    handles = bench.open(8)
    lane = [rows([handle], 0, 1) for handle in handles]
    taken = lane[:first]
    lane = lane[first:] if first < 6 else []

    def send_again() -> None:
        for reply in sessions.take_replies():
            assert isinstance(reply, RowsReply)
            for handle, position in zip(reply.handles, reply.positions, strict=True):
                lane.append(rows([int(handle)], int(position), 1))

    def compute(run: Any) -> Any:
        send_again()
        return sessions.runs.compute(run)

    express.compute = compute
    while len(runtime.runs) < len(runs):
        sessions.admit(taken)
        if not lane and not sessions.has_rest:
            send_again()
        taken, lane = lane, []
    assert [n for n, _ in runtime.runs] == runs


def test_what_was_not_answered_ends_with_the_engine() -> None:
    bench = Bench(counter_model(CounterRuntime()), run_budget_ms=10.0)
    sessions, express = bench.sessions, bench.sessions.express
    handles = bench.open(8)
    sessions.admit([rows(handles, 0, 150)])
    assert not sessions.is_idle

    def compute(run: Any) -> Any:
        raise OSError("the books cannot be kept")

    express.compute = compute
    with pytest.raises(OSError, match="books"):
        sessions.admit([rows(handles[:1], 150, 150)])
    sessions.fail_all(CellarError(Reason.SHUTTING_DOWN, "over"))
    assert sessions.is_idle
    answered, *refused = sessions.take_replies()
    assert answered.handles.tolist() == handles[:4]
    assert [each.handles.tolist() for each in refused] == [[*handles[4:], handles[0]]]
    assert all(each.error.reason == Reason.SHUTTING_DOWN for each in refused)


def test_answers_are_stored_beside_a_long_run_and_at_the_latest_before_the_third() -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime), run_budget_ms=10.0)
    sessions, express = bench.sessions, bench.sessions.express
    handles = bench.open(4)
    beside: list[int] = []

    def compute(run: Any) -> Any:
        if run.cost_s >= OVERLAP_S:
            sessions.settle_late()
            beside.append(sessions.core.counts.chunks)
        return sessions.runs.compute(run)

    express.compute = compute
    for turn in range(3):  # short runs: what the third finds unsettled it stores before it runs
        sessions.admit([rows(handles, turn, 1)])
    assert (beside, sessions.core.counts.chunks) == ([], 8)
    sessions.admit([rows(handles, 3, 100)])  # 4 ms
    assert beside == [12]
    assert sessions.is_unsettled
    (again,) = [rows(handles[:1], 3, 100)]
    sessions.take_replies()
    sessions.admit([again])  # sent again: its answer must be stored by now
    (reply,) = sessions.take_replies()
    assert reply.positions == [103]
    assert reply.outputs[:, 0].tolist() == list(range(4, 104))


def test_what_is_odd_takes_the_queue_and_is_answered_for_itself() -> None:
    bench = Bench(counter_model(CounterRuntime()))
    first, second = bench.open(2)
    bench.sessions.admit([rows([first, second], 0, 1)])
    bench.sessions.take_replies()
    ahead = rows([first, second], 1, 1)
    ahead.position = np.array([1, 5])
    bench.sessions.admit([ahead])
    bench.run()
    bench.sessions.settle()
    replies = bench.sessions.take_replies()
    (answered,) = [reply for reply in replies if isinstance(reply, RowsReply)]
    (refused,) = [reply for reply in replies if not isinstance(reply, RowsReply)]
    assert answered.handles.tolist() == [first]
    assert answered.positions.tolist() == [2]
    assert isinstance(refused, RowsRefused)
    assert refused.handles.tolist() == [second]
    assert refused.error.reason == Reason.POSITION_GAP


def test_one_row_is_taken_as_several_are() -> None:
    """By numbers and by columns: the same answers, positions, states, stored answers and counts."""
    one, two = Bench(counter_model(CounterRuntime())), Bench(counter_model(CounterRuntime()))
    single, pair = one.open(1), two.open(2)
    for position, steps in ((0, 1), (1, 3), (4, 1), (5, 1), (6, 2), (8, 1)):
        one.sessions.admit([rows(single, position, steps)])
        two.sessions.admit([rows(pair, position, steps)])
        (mine,), (theirs,) = one.sessions.take_replies(), two.sessions.take_replies()
        assert isinstance(mine, RowsReply)
        assert isinstance(theirs, RowsReply)
        assert mine.outputs.tolist() == theirs.outputs[:steps].tolist()
        for column in ("starts", "positions", "lengths"):
            assert getattr(mine, column).tolist() == getattr(theirs, column)[:1].tolist()
    one.sessions.settle_late()
    two.sessions.settle_late()
    cores = one.sessions.core, two.sessions.core
    kept = [[(*each[:3], each[3].tolist()) for each in core.answers.of(0)] for core in cores]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 4
    assert cores[0].answers.num_bytes * 2 == cores[1].answers.num_bytes
    for name in ("steps", "rows", "chunks", "queue_rows"):
        assert getattr(cores[0].counts, name) * 2 == getattr(cores[1].counts, name)
    assert {place: 2 * count for place, count in cores[0].copied_bytes.items()} == cores[1].copied_bytes
    table = cores[0].table
    assert (table.state[0] == cores[1].table.state[0]).all()
    assert table.position[0] == table.accepted[0] == 9


@pytest.mark.parametrize("odd", ["handle", "stream", "position", "late", "busy"])
def test_one_row_about_which_something_is_odd_is_not_taken(odd: str) -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime))
    handles = bench.open(2)
    row = rows(handles[:1], 0, 1)
    if odd == "handle":
        row = replace(row, handle=row.handle + np.uint64(1 << 32))
    elif odd == "stream":
        row = replace(row, stream=row.stream + 1)
    elif odd == "position":
        row = replace(row, position=row.position + 1)
    elif odd == "late":
        row = replace(row, deadline=np.array([bench.clock()]))
    else:
        bench.sessions.core.table.in_flight[0] = 1
    assert not bench.sessions.express.run(row, None, bench.clock())
    assert runtime.runs == []


@pytest.mark.parametrize("unit_bytes", [1, 2, 4, 8, 256])
def test_one_digest_is_that_of_many(unit_bytes: int) -> None:
    data = np.random.default_rng(5).integers(0, 256, 96 * unit_bytes, np.uint8)
    for length in (0, 1, 2, 7, 96):
        lengths = np.array([length, 96 - length])
        one = digest_of(data[: length * unit_bytes], length, unit_bytes)
        assert one == digests(data, lengths, unit_bytes)[0]
