"""A sequence that comes alone runs at once, and is answered as the queue would answer it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import PredictRequest as Request
from cellar_proto.v1.reason_pb2 import Reason
from cellar_proto.v1.tensor_pb2 import INT64, Tensor
from cellar_server.scheduler.policy import Cost
from cellar_server.sessions.lone_sequences import MAX_STEPS
from cellar_server.sessions.messages import PredictRows, RowsBack, RowsRefused, RowsReply
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.bench import Bench
from tests.fakes.runtime import CounterRuntime, counter_model
from tests.server.test_engine import QUICK, Desk


def rows(values: list[float], call: int = 7, length: int = -1, first_axis: int = -1, **more: Any) -> PredictRows:
    """One sequence of a call of its own."""
    data = np.array(values, np.float32).view(np.uint8)
    frame = more.pop("frame", Request(inputs=Tensor(shape=[1] if first_axis >= 0 else [])))
    none = np.zeros(1, np.uint64)
    numbers = [np.array([call], np.uint64), np.ones(1, np.int64), none, none, none.view(np.int64)]
    sizes = [np.array([each], np.int64) for each in (length, first_axis, len(data))]
    return PredictRows("all", b"", frame, *numbers, *sizes, data, **more)


def kind_of(bench: Bench) -> list[Any]:
    """What was answered, so that two answers can be compared."""
    said: list[Any] = []
    for reply in bench.sessions.take_replies():
        if isinstance(reply, RowsReply):
            said.append((reply.to, reply.call.tolist(), reply.positions.tolist(), reply.lengths.tolist()))
            said.append((reply.starts.tolist(), reply.handles.tolist(), reply.outputs.tolist()))
        elif isinstance(reply, RowsRefused):
            said.append((reply.to, reply.call.tolist(), reply.error.reason, reply.ends_calls))
        else:
            assert isinstance(reply, RowsBack)
            said.append((reply.to, reply.rows.call.tolist()))
    return said


@given(st.data())
def test_it_is_answered_as_in_the_queue_however_odd_it_is(data: st.DataObject) -> None:
    values = data.draw(st.lists(st.sampled_from([1.0, 2.0, 3.0] * 5 + [float("nan")]), max_size=6))
    given_rows: dict[str, Any] = {
        "length": data.draw(st.sampled_from([-1, len(values), len(values) + 1, 0])),
        "first_axis": data.draw(st.sampled_from([-1, len(values), 9])),
        "all_emissions": data.draw(st.booleans()),
        "deadline": data.draw(st.sampled_from([None, np.array([999.0]), np.array([1001.0]), np.array([np.inf])])),
    }
    if data.draw(st.integers(0, 9)) == 0:
        given_rows["frame"] = Request(inputs=Tensor(dtype=INT64))
    fail_on = frozenset(data.draw(st.sets(st.just(0))))
    found = []
    for is_queued in (False, True):
        bench = Bench(counter_model(CounterRuntime(fail_on)))
        if is_queued:
            bench.sessions.lone.run = lambda requests, now: False  # type: ignore[method-assign]
        bench.sessions.admit([rows(values, **given_rows)])
        bench.run()
        counts = bench.sessions.core.counts
        found.append(
            (kind_of(bench), counts.refusals, counts.runs, counts.steps, counts.queue_rows, sum(counts.queue.bins))
        )
        assert bench.sessions.is_idle
    assert found[0] == found[1]


def test_it_never_enters_the_queue() -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime))
    bench.sessions.admit([rows([1.0, 2.0])])
    assert runtime.runs == [(1, 2)]
    (reply,) = bench.sessions.take_replies()
    assert (reply.outputs.tolist(), reply.call.tolist()) == ([[1.0], [3.0]], [7])
    bench.sessions.admit([rows([1.0, 2.0], all_emissions=False)])
    (reply,) = bench.sessions.take_replies()
    assert reply.outputs.tolist() == [[3.0]]
    assert bench.sessions.core.copied_bytes == {"read": 16}


@pytest.mark.parametrize("why", ["long", "many steps", "others are ready", "two at once", "it drains", "no room"])
def test_it_waits_its_turn_where_there_is_one(why: str) -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime), max_queue_rows=2)
    requests = [rows([1.0, 2.0])]
    if why == "long":
        bench.sessions.core.scheduler.cost = Cost(1e-3, 1e-3, 1e-3)
    elif why == "many steps":
        requests = [rows([1.0] * (MAX_STEPS + 1))]
        bench.sessions.core.scheduler.cost = Cost(1e-9, 1e-9, 1e-9)
    elif why == "others are ready":
        (handle,) = bench.open()
        bench.send([handle], [0], [[1.0] * 3])
    elif why == "two at once":
        requests.append(rows([1.0, 2.0], call=8))
    elif why == "it drains":
        bench.sessions.core.is_draining = True
    else:
        bench.sessions.core.work.take(2)
    bench.sessions.admit(requests)
    assert not runtime.runs
    replies = bench.sessions.take_replies()
    if why in ("it drains", "no room"):
        (reply,) = replies
        assert reply.error.reason == (Reason.SHUTTING_DOWN if why == "it drains" else Reason.OVERLOADED)
        return
    assert not replies
    bench.run()
    assert runtime.runs
    assert bench.sessions.take_replies()


def test_a_fault_of_the_books_answers_it() -> None:
    desk = Desk(CounterRuntime(), QUICK)
    desk.engine._sessions.runs.count = None  # type: ignore[assignment]
    desk.engine.post(rows([1.0]))
    desk.wait(lambda replies: len(replies) == 1)
    (reply,) = desk.replies
    assert isinstance(reply, RowsRefused)
    assert (reply.error.reason, reply.call.tolist()) == (Reason.INTERNAL, [7])
    desk.engine.stop(1)
