"""Chunks that came one a message: they take turns by their callers, and are refused in time like frames."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.reason_pb2 import Reason
from cellar_server.sessions.core import WAIT_PART
from cellar_server.sessions.messages import AnswerReply, Rows, RowsRefused, RowsReply
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.bench import Bench, reason_of
from tests.fakes.runtime import counter_model


class Calls:
    """Whom rows are answered to."""

    def asker(self, call: int, is_step: bool) -> Any:
        return call


def rows(handles: list[int], stream: int, deadline: float | None = None, caller: int | None = None) -> Rows:
    """One step of each session, at position 0; the handle is the number of the call."""
    n = len(handles)

    def full(value: int) -> np.ndarray:
        return np.full(n, value, np.int64)

    frame = Frame()
    return Rows(
        Calls(),
        frame.SerializeToString(),
        frame,
        np.array(handles, np.uint64),
        full(stream),
        np.arange(n, dtype=np.uint64),
        np.array(handles, np.uint64),
        full(0),
        full(-1),
        full(-1),
        full(4),
        np.ones(n, np.float32).view(np.uint8),
        deadline=None if deadline is None else np.full(n, deadline),
        caller=None if caller is None else full(caller),
    )


def outcomes(bench: Bench) -> dict[int, str]:
    """By handle: "" where it was answered, else the reason."""
    found: dict[int, str] = {}
    for reply in bench.sessions.take_replies():
        assert isinstance(reply, AnswerReply | RowsReply | RowsRefused)
        errors = dict(reply.errors)
        for i, handle in enumerate(reply.handles):
            found[int(handle)] = reason_of(errors[i]) if i in errors else ""
    return found


def test_rows_take_turns_by_stream_or_by_the_name_of_their_caller() -> None:
    bench = Bench(counter_model(), max_rows_per_run=4)
    greedy, other, third = bench.open(40, stream=1), bench.open(2, stream=2), bench.open(1, stream=3)
    # stream 3 is another stream of the caller of stream 2: they share a turn
    bench.sessions.admit([rows(greedy, 1), rows(other, 2, caller=77), rows(third, 3, caller=77)])
    bench.run(1)
    first = outcomes(bench)
    assert set(other) <= set(first)
    assert len(set(greedy) & set(first)) == 2
    bench.run()
    assert set(outcomes(bench).values()) == {""}


def test_rows_that_would_wait_beyond_their_time_are_refused_at_once() -> None:
    bench = Bench(counter_model(), max_rows_per_run=10, max_sessions=512)
    queued, late = bench.open(300, stream=1), bench.open(5, stream=1)
    (light,) = bench.open(1, stream=2)
    bench.sessions.admit([rows(queued, 1)])
    soon = bench.clock.now + 310 * bench.sessions.core.pressure.s_per_row / 4
    bench.sessions.admit([rows(late, 1, soon), rows([light], 2, soon)])
    assert outcomes(bench) == dict.fromkeys(late, "OVERLOADED")
    bench.run()
    assert outcomes(bench) == dict.fromkeys([*queued, light], "")


def test_rows_whose_time_was_over_before_they_were_taken_are_refused_in_one_reply() -> None:
    bench = Bench(counter_model(), max_rows_per_run=4)
    late, good = bench.open(20, stream=1), bench.open(3, stream=2)
    bench.sessions.admit([rows(late, 1, bench.clock.now - 0.001), rows(good, 2)])
    replies = bench.sessions.take_replies()
    assert [(type(reply), reply.handles.tolist()) for reply in replies] == [(RowsRefused, late)]
    assert reason_of(replies[0].error) == "DEADLINE_EXCEEDED"
    assert replies[0].positions.tolist() == [0] * 20
    bench.run()
    assert outcomes(bench) == dict.fromkeys(good, "")
    # nothing of the late ones was taken in: sent again they run
    bench.sessions.admit([rows(late, 1, bench.clock.now + 60)])
    bench.run()
    assert outcomes(bench) == dict.fromkeys(late, "")
    assert bench.sessions.core.counts.refusals == {Reason.DEADLINE_EXCEEDED: 20}
    assert bench.sessions.core.counts.chunks_failed == 20


def test_of_rows_that_come_together_those_run_that_can_in_time() -> None:
    bench = Bench(counter_model(), max_rows_per_run=10, max_sessions=512)
    many, few = bench.open(200, stream=1), bench.open(20, stream=2)
    soon = bench.clock.now + 60 * bench.sessions.core.pressure.s_per_row / WAIT_PART
    bench.sessions.admit([rows(many, 1, soon), rows(few, 2, soon)])
    refused = outcomes(bench)
    # both streams get the same share of the next fifty rows; one has no more than twenty
    assert set(refused.values()) == {"OVERLOADED"}
    assert set(refused) == set(many[30:])
    bench.run()
    assert outcomes(bench) == dict.fromkeys([*many[:30], *few], "")


@given(
    st.lists(st.integers(1, 4), max_size=40),
    st.lists(st.integers(1, 5), min_size=1, max_size=40),
)
def test_the_wait_of_rows_together_is_that_of_each_where_those_before_it_are_ready(
    ready: list[int], coming: list[int]
) -> None:
    """As if each row were asked for by itself, the ones of its own caller before it being queued."""
    bench = Bench(counter_model(), max_rows_per_run=4)
    pressure = bench.sessions.core.pressure
    counts = Counter(ready)
    for caller, count in counts.items():
        bench.sessions.admit([rows(bench.open(count, stream=caller), caller)])
    queued = Counter(bench.sessions.core.work.caller[bench.sessions.core.scheduler.ready].tolist())
    found = pressure.waits_s(np.array(coming))
    if len(bench.sessions.core.scheduler.ready) + len(coming) <= 4:
        assert found is None
        return
    assert found is not None
    total, rank = queued + Counter(coming), Counter(queued)
    for i, caller in enumerate(coming):
        rank[caller] += 1
        before = sum(min(count, rank[caller]) for count in total.values())
        assert found[i] == pytest.approx((before + 4) * pressure.s_per_row)
