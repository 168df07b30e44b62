"""Chunks that came one a message: they take turns by their callers, and are refused in time like frames."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cellar_proto.v1.inference_pb2 import Frame
from cellar_proto.v1.reason_pb2 import Reason
from cellar_server.scheduler.fairness import PATIENCE_S
from cellar_server.sessions.core import WAIT_PART
from cellar_server.sessions.messages import BY_SEQUENCE, AnswerReply, Rows, RowsRefused, RowsReply
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


def test_rows_of_two_outlets_share_a_run_and_are_answered_to_their_own() -> None:
    bench = Bench(counter_model(), max_rows_per_run=8)
    a, b, c, d = bench.open(4)
    mine, others = rows([a, c], 1), replace(rows([b, d], 1), rest=b"others", outlet=BY_SEQUENCE)
    bench.send([bench.open()[0]], [0], [[1.0]])  # so that none goes the short way
    bench.sessions.admit([mine, others])
    bench.run()
    assert bench.sessions.core.counts.runs == 1
    replies = [reply for reply in bench.sessions.take_replies() if type(reply) is RowsReply]
    assert [(reply.to, reply.handles.tolist()) for reply in replies] == [(others.to, [b, d]), (mine.to, [a, c])]


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


ROWS = st.tuples(st.integers(1, 5), st.integers(1, 40), st.sampled_from([0.5, 1.0, 2.0, 100.0, np.inf]))


@given(st.lists(ROWS, max_size=40), st.lists(ROWS, min_size=1, max_size=40))
def test_the_wait_of_rows_that_come_together_is_that_of_the_steps_before_each(
    ready: list[tuple[int, int, float]], coming: list[tuple[int, int, float]]
) -> None:
    """By caller, steps and time-out: ready rows, and rows that come now."""
    bench = Bench(counter_model(), max_rows_per_run=4, run_budget_ms=1.0)
    core, now = bench.sessions.core, bench.clock.now
    pressure, work = core.pressure, core.work
    for caller, steps, timeout in ready:
        w = work.take(1)
        work.caller[w], work.steps[w], work.arrived[w] = caller, steps, now
        work.limit(w, now + timeout, False)
        core.scheduler.add(w)
    callers, steps, timeouts = (np.array(column) for column in zip(*coming, strict=True))
    found = pressure.waits_s(callers, now + timeouts, now, steps)
    one = pressure.wait_s(int(callers[0]), now + timeouts[0], now, int(steps[0]))
    alone = pressure.waits_s(callers[:1], now + timeouts[:1], now, steps[:1])
    assert one == (0 if alone is None else pytest.approx(float(alone[0])))
    if len(ready) + len(coming) <= 4:
        if steps.max() <= core.scheduler.cost.max_steps(len(ready) + len(coming), core.scheduler.budget_s):
            assert found is None
            return
        # one run takes all rows, but not all steps: each row's are those of all others too
        for i, count in enumerate(steps.tolist()):
            others = len(ready) + i
            assert found[i] == pytest.approx((others + 1) * count * pressure.s_per_step if others else 0.0)
        return
    assert found is not None
    totals = Counter[int]()
    for caller, count, _ in ready + coming:
        totals[caller] += count
    for i, (caller, count, timeout) in enumerate(coming):
        until = min(timeout, PATIENCE_S)
        # rows without a deadline keep their places
        ahead = [n for c, n, t in ready if c == caller and (t == np.inf or min(t, PATIENCE_S) <= until)]
        ahead += [n for j, (c, n, t) in enumerate(coming) if c == caller and (min(t, PATIENCE_S), j) < (until, i)]
        level = sum(ahead) + count
        before = sum(min(total, level) for total in totals.values())
        assert found[i] == pytest.approx(before * pressure.s_per_step + count * pressure.pace_s)
