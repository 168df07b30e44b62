"""The short way: rows that need no queue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.reason_pb2 import Reason
from cellar_server.errors import CellarError
from cellar_server.sessions.messages import Rows, RowsRefused, RowsReply
from cellar_server.sessions.runs import OVERLAP_S

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
        assert runtime.runs == runs
    bench.run()
    bench.sessions.settle()
    replies = bench.sessions.take_replies()
    assert all(isinstance(reply, RowsReply) for reply in replies)
    assert sorted(handle for reply in replies for handle in reply.handles.tolist()) == sorted(handles)
    for reply in replies:
        assert (reply.positions == steps).all()
        found = reply.outputs.reshape(len(reply.handles), steps)
        assert (found == np.arange(1, steps + 1)).all()


def test_each_part_is_answered_before_the_next_is_computed() -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime), run_budget_ms=10.0)
    sessions, express = bench.sessions, bench.sessions.express
    handles = bench.open(8)
    found: list[list[int]] = []

    def compute(run: Any) -> Any:
        found.append([len(reply.handles) for reply in sessions.take_replies()])
        return sessions.runs.compute(run)

    express.compute = compute
    sessions.admit([rows(handles, 0, 150), replace(rows(handles[:1], 150, 1), rest=b"other")])
    assert runtime.runs == [(4, 150), (4, 150), (1, 1)]
    assert found == [[], [4], [4]]
    assert [reply.positions.tolist() for reply in sessions.take_replies()] == [[151]]


def test_parts_that_were_not_run_end_with_the_engine() -> None:
    bench = Bench(counter_model(CounterRuntime()), run_budget_ms=10.0)
    sessions, express = bench.sessions, bench.sessions.express
    handles = bench.open(8)

    def compute(run: Any) -> Any:
        if sessions.core.counts.runs:
            raise OSError("the books cannot be kept")
        return sessions.runs.compute(run)

    express.compute = compute
    with pytest.raises(OSError, match="books"):
        sessions.admit([rows(handles, 0, 150)])
    sessions.fail_all(CellarError(Reason.SHUTTING_DOWN, "over"))
    answered, refused = sessions.take_replies()
    assert (answered.handles.tolist(), refused.handles.tolist()) == (handles[:4], handles[4:])
    assert isinstance(refused, RowsRefused)
    assert refused.error.reason == Reason.SHUTTING_DOWN


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
