"""Turns between callers: equal shares of a run, and nobody waits without end."""

from __future__ import annotations

import math

import numpy as np
from cellar_server.scheduler.fairness import PATIENCE_S, Turns
from cellar_server.scheduler.policy import Cost
from cellar_server.scheduler.scheduler import Scheduler
from cellar_server.scheduler.work import Work
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.bench import Bench
from tests.fakes.runtime import CounterRuntime, counter_model


class Queue:
    """A scheduler whose rows are known by their caller."""

    def __init__(self, max_rows: int, capacity: int = 4096) -> None:
        self.work = Work(capacity, 1)
        self.scheduler = Scheduler(
            self.work, CounterRuntime(), Cost(1e-4, 1e-5, 1e-5), max_rows=max_rows, budget_s=0.01
        )

    def add(
        self, caller: int, steps: list[int], *, is_bulk: bool = False, now: float = 0.0, timeout: float = np.inf
    ) -> np.ndarray:
        rows = self.work.take(len(steps))
        self.work.caller[rows] = caller
        self.work.steps[rows] = steps
        self.work.arrived[rows] = now
        self.work.limit(rows, now + timeout, is_bulk)
        self.scheduler.add(rows)
        return rows

    def run(self) -> np.ndarray:
        """Rows of the next run; those that have steps left are ready again."""
        rows, steps = self.scheduler.next()
        self.work.done[rows] += steps
        ended = self.work.done[rows] == self.work.steps[rows]
        if not ended.all():
            self.scheduler.add(rows[~ended])
        return rows


def test_one_greedy_caller_leaves_the_others_their_share() -> None:
    queue = Queue(max_rows=8)
    queue.add(1, [1] * 1000)
    late = queue.add(2, [1] * 3)
    assert set(late.tolist()) <= set(queue.run().tolist())
    later = queue.add(3, [1])
    assert later[0] in queue.run()


def test_more_callers_than_rows_take_turns() -> None:
    queue = Queue(max_rows=4)
    for caller in range(10):
        queue.add(caller, [1] * 50)
    served = np.zeros(10, np.int64)
    for _ in range(10):
        served += np.bincount(queue.work.caller[queue.run()], minlength=10)
    assert served.tolist() == [4] * 10


def test_the_last_of_many_is_served_though_newcomers_never_end() -> None:
    queue = Queue(max_rows=4)
    mine = queue.add(0, [1] * 3)
    seen: set[int] = set()
    for turn in range(9):
        queue.add(1000 + turn, [1] * 20)
        for each in range(4):  # as many new callers as a run has rows
            queue.add(1 + 4 * turn + each, [1])
        seen |= set(queue.run().tolist()) & set(mine.tolist())
    assert seen


def test_bulk_rows_stay_behind_whoever_sends_them() -> None:
    queue = Queue(max_rows=4)
    queue.add(1, [1] * 4, is_bulk=True)
    interactive = queue.add(2, [1] * 6)
    assert set(queue.run().tolist()) <= set(interactive.tolist())


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 40)), min_size=1, max_size=20), st.integers(1, 12))
@settings(max_examples=60)
def test_shares_of_a_run_are_equal_within_a_row(adds: list[tuple[int, int]], max_rows: int) -> None:
    queue = Queue(max_rows)
    for caller, count in adds:
        queue.add(caller, [1] * count)
    while queue.scheduler.has_ready:
        ready = np.bincount(queue.work.caller[queue.scheduler.ready], minlength=7)
        taken = np.bincount(queue.work.caller[queue.run()], minlength=7)
        left = ready - taken
        # whoever has rows left got as many as anybody, but for the one row that did not fit
        assert not left.any() or taken[left > 0].min() >= taken.max() - 1


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60)), max_size=6), min_size=1, max_size=30),
    st.integers(1, 8),
)
@settings(max_examples=60)
def test_every_row_runs_within_a_bounded_number_of_runs(arrivals: list[list[tuple[int, int]]], max_rows: int) -> None:
    queue = Queue(max_rows)
    bounds: dict[int, int] = {}  # by row: the run by which it must have been taken
    for turn in range(2000):
        for caller, steps in arrivals[turn] if turn < len(arrivals) else []:
            ready = queue.scheduler.ready
            before = int((queue.work.caller[ready] == caller).sum())
            (row,) = queue.add(caller, [steps])
            # its caller's rows before it each take a round of six callers; a run may pass a row over once
            bounds[int(row)] = turn + 2 * math.ceil(6 / max_rows) * (before + 1) + 2 * before + 2
        if not queue.scheduler.has_ready:
            if turn >= len(arrivals):
                break
            continue
        for row in queue.run().tolist():
            assert turn <= bounds.pop(row, turn)
    assert not queue.scheduler.has_ready
    assert not bounds


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3), st.booleans()), max_size=12), max_size=30),
    st.integers(1, 6),
)
def test_the_order_is_by_rank_and_patience_whatever_rows_callers_had_before(
    arrivals: list[list[tuple[int, int, bool]]], max_rows: int
) -> None:
    work = Work(1200, 1)
    turns = Turns(work)
    served: dict[int, int] = {}
    ready = np.zeros(0, np.int64)
    bulk: set[int] = set()
    for turn, adds in enumerate([*arrivals, *[[]] * 40], 1):
        for caller, count, is_bulk in adds:
            rows = work.take(count)
            work.caller[rows] = caller
            bulk = bulk - set(rows.tolist()) | (set(rows.tolist()) if is_bulk else set())
            ready = np.concatenate([ready, rows])
        if not len(ready):
            break
        behind = np.isin(ready, list(bulk))
        caller = work.caller[ready].tolist()
        keys = []
        for i, row in enumerate(ready.tolist()):
            rank = sum(caller[k] == caller[i] and behind[k] == behind[i] for k in range(i))
            keys.append((bool(behind[i]), rank, -min(int(work.waited[row]), turn - served.get(caller[i], 0)), i))
        ordered = turns.order(ready, behind if behind.any() else None)
        assert ordered.tolist() == [int(ready[key[-1]]) for key in sorted(keys)]
        assert turns.num_callers == len(set(caller))
        taken, ready = ordered[:max_rows], ordered[max_rows:]
        turns.serve(taken)
        served |= dict.fromkeys(work.caller[taken].tolist(), turn)
        work.waited[ready] += 1
        work.give_back(taken)  # another caller's row may be the next one there


def test_what_began_ends_before_what_is_due_later_begins() -> None:
    queue = Queue(max_rows=2)
    first = queue.add(1, [40, 40], timeout=1.0)
    queue.add(1, [40, 40], timeout=2.0)
    while queue.work.done[first[0]] < 40:
        assert set(queue.run().tolist()) == set(first.tolist())


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.1, 0.2, 0.3, 3.0, np.inf])), min_size=1, max_size=60),
    st.integers(1, 8),
)
def test_a_callers_rows_run_by_their_deadlines_and_those_without_keep_their_order(
    arrivals: list[tuple[int, float]], max_rows: int
) -> None:
    queue = Queue(max_rows)
    known: dict[int, tuple[int, float, int]] = {}  # by row: caller, time-out, place
    for place, (caller, timeout) in enumerate(arrivals):
        (row,) = queue.add(caller, [1], timeout=timeout).tolist()
        known[row] = caller, timeout, place
    while queue.scheduler.has_ready:
        left = [known[row] for row in queue.scheduler.ready.tolist()]
        taken = [known[row] for row in queue.run().tolist()]
        for caller, timeout, place in taken:
            stays = [each for each in left if each not in taken and each[0] == caller]
            if timeout < np.inf:
                assert all(each[1:] > (timeout, place) for each in stays if each[1] < np.inf)
            else:
                assert all(each[2] > place for each in stays if each[1] == np.inf)


@given(
    st.sampled_from([0.05, 0.5, 1.0]), st.sampled_from([20.0, 1e6, np.inf]), st.integers(1, 8), st.sampled_from([2, 3])
)
@settings(max_examples=20)
def test_no_flood_of_nearer_deadlines_holds_up_a_row_for_good(
    near: float, far: float, max_rows: int, flood: int
) -> None:
    """Runs of 50 ms, before each of which come so many times as many rows as it takes."""
    queue = Queue(max_rows, capacity=1 << 16)
    queue.add(1, [1] * 50, timeout=near)
    (row,) = queue.add(1, [1], timeout=far).tolist()
    now, ahead = 0.0, 50
    for turn in range(100_000):
        now += 0.05
        queue.add(1, [1] * (flood * max_rows), now=now, timeout=near)
        # what comes once the row has waited for its time goes behind it; of a row without a deadline all does
        ahead += flood * max_rows * (far < np.inf and now + near <= PATIENCE_S)
        if row in queue.run().tolist():
            break
        assert (turn + 1) * max_rows <= ahead
    assert row not in queue.scheduler.ready


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 30)), min_size=1, max_size=40), st.integers(1, 6))
@settings(max_examples=40)
def test_no_answer_changes_by_taking_turns(chunks: list[tuple[int, int]], max_rows: int) -> None:
    bench = Bench(counter_model(), max_rows_per_run=max_rows)
    handles = {stream: bench.open(len(chunks), stream) for stream in (1, 2, 3)}
    for i, (stream, steps) in enumerate(chunks):
        bench.send([handles[stream][i]], [0], [[1.0] * steps], stream=stream)
    bench.run()
    answers = bench.take()
    for i, (stream, steps) in enumerate(chunks):
        assert answers[handles[stream][i], 0].tolist() == list(range(1, steps + 1))
