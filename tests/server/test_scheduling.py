"""Which rows run together: no padding, nobody waits long."""

from __future__ import annotations

import numpy as np
from cellar_server.scheduler.policy import MAX_CALLS, Cost, calls, choose, num_fitting
from cellar_server.scheduler.scheduler import BULK_CAUTION, LEAST_RUN_S, Scheduler
from cellar_server.scheduler.work import Work
from cellar_server.sessions.messages import PredictRequest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.bench import Bench
from tests.fakes.runtime import CounterRuntime, counter_model

COST = Cost(1e-4, 1e-5, 1e-5)


def test_short_rows_beside_a_long_one_are_answered_within_two_runs() -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime))
    handles = bench.open(64)
    bench.send([handles[0]], [0], [[1.0] * 10_000])
    bench.send(handles[1:], [0] * 63, [[1.0]] * 63)
    bench.run(2)
    assert len(bench.take()) == 63
    bench.run()
    (answer,) = bench.take().values()
    assert answer[-1] == 10_000
    assert sum(rows * steps for rows, steps in runtime.runs) == 10_063
    assert bench.sessions.core.counts.steps == 10_063
    assert bench.sessions.core.counts.padded_steps == 0


def test_eight_lengths_take_at_most_eight_runs() -> None:
    bench = Bench(counter_model())
    handles = bench.open(8)
    bench.send(handles, [0] * 8, [[1.0] * n for n in range(1, 9)])
    assert bench.run() <= 8
    assert len(bench.take()) == 8
    assert bench.sessions.core.counts.steps == 36


def test_interactive_rows_go_before_bulk_ones() -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime), max_rows_per_run=4)
    handles = bench.open(8)
    bench.send(handles[:4], [0] * 4, [[1.0]] * 4, priorities=[1])
    bench.send(handles[4:], [0] * 4, [[1.0]] * 4)
    bench.run(1)
    assert {handle for handle, _ in bench.take()} == set(handles[4:])


def test_bulk_rows_are_not_starved() -> None:
    bench = Bench(counter_model(), max_rows_per_run=1)
    bulk, busy = bench.open(2)
    bench.send([bulk], [0], [[1.0]], priorities=[1])
    for t in range(12):
        bench.send([busy], [t], [[1.0]])
        bench.run(1)
        if (bulk, 0) in bench.take():
            return
    raise AssertionError("the bulk row waited for more than 12 runs")


@given(st.lists(st.integers(1, 400), min_size=1, max_size=80), st.integers(1, 32), st.sampled_from([1e-3, 0.01]))
def test_a_run_takes_the_first_rows_and_never_more_than_one_has(
    lengths: list[int], max_rows: int, budget_s: float
) -> None:
    remaining = np.array(lengths)
    places, steps = choose(remaining, COST, max_rows=max_rows, budget_s=budget_s)
    assert sorted(places.tolist()) == list(range(len(places)))
    assert 1 <= len(places) <= max_rows
    assert 1 <= steps[-1] <= steps[0] == steps.max()
    assert (np.diff(steps) <= 0).all()
    assert (steps <= remaining[places]).all()
    assert len(set(steps.tolist())) <= MAX_CALLS
    assert steps[0] == 1 or COST.of_ragged(steps) <= budget_s + 1e-9
    assert len(places) == num_fitting(remaining, COST, max_rows=max_rows, budget_s=budget_s)


def test_few_rows_run_deep_where_many_wait() -> None:
    places, steps = choose(np.full(1000, 16), COST, max_rows=256, budget_s=0.01)
    assert (len(places), set(steps.tolist())) == (60, {16})
    # a dear run is of more rows: their steps are to be most of it
    places, steps = choose(np.full(1000, 16), Cost(9e-3, 1e-5, 1e-5), max_rows=256, budget_s=0.01)
    assert (len(places), set(steps.tolist())) == (256, {1})


def test_rows_of_few_lengths_all_end_with_one_run() -> None:
    remaining = np.array([5, 3, 9, 3, 5, 1])
    places, steps = choose(remaining, Cost(1e-6, 1e-5, 1e-5), max_rows=256, budget_s=0.01)
    assert remaining[places].tolist() == steps.tolist() == [9, 5, 5, 3, 3, 1]


def test_rows_leave_a_run_and_the_others_go_on() -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime))
    handles = bench.open(4)
    bench.send(handles, [0] * 4, [[1.0] * n for n in (2, 5, 2, 9)])
    bench.run(1)
    answers = bench.take()
    assert [answers[handle, 0][-1] for handle in handles] == [2, 5, 2, 9]
    assert runtime.runs == [(4, 2), (2, 3), (1, 4)]
    counts = bench.sessions.core.counts
    assert (counts.runs, counts.rows, counts.steps, counts.runs_by_rows) == (3, 7, 18, {4: 1, 2: 1, 1: 1})


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_every_sequence_ends_with_the_right_sum(lengths: list[int]) -> None:
    runtime = CounterRuntime()
    bench = Bench(counter_model(runtime), max_rows_per_run=16)
    data = np.ones(sum(lengths), np.float32).tobytes()
    bench.sessions.admit([PredictRequest("me", lengths, 0, [], data, False)])
    bench.run()
    (reply,) = bench.sessions.take_replies()
    assert reply.outputs.ravel().tolist() == lengths
    assert sum(rows * steps for rows, steps in runtime.runs) == sum(lengths)
    assert max(rows for rows, _ in runtime.runs) <= 16


def queue_of(lengths: list[int], *, max_rows: int = 64, is_bulk: bool = False) -> tuple[Work, Scheduler]:
    work = Work(max(512, len(lengths)), 1)
    scheduler = Scheduler(work, CounterRuntime(), COST, max_rows=max_rows, budget_s=0.01)
    add(work, scheduler, lengths, is_bulk=is_bulk)
    return work, scheduler


def add(work: Work, scheduler: Scheduler, lengths: list[int], *, is_bulk: bool = False) -> np.ndarray:
    rows = work.take(len(lengths))
    work.steps[rows] = lengths
    work.limit(rows, np.inf, is_bulk)
    scheduler.add(rows)
    return rows


def advance(work: Work, scheduler: Scheduler) -> tuple[np.ndarray, int]:
    """One run, cut for somebody who comes where that may be, whose unfinished rows are ready again: its rows, and the
    most steps of any."""
    rows, steps = scheduler.next()
    if scheduler.look_s < np.inf:
        steps = np.minimum(steps, calls(steps, COST, scheduler.look_s)[0][2])
    work.done[rows] += steps
    going = rows[work.done[rows] < work.steps[rows]]
    if len(going):
        scheduler.add(going)
    return rows, int(steps[0])


def test_a_long_row_alone_is_cut_short_so_that_a_newcomer_waits_little() -> None:
    work, scheduler = queue_of([10_000])
    _, q = advance(work, scheduler)
    assert COST(1, q - 1) < 0.01 < COST(1, q + 1)  # 10,000 steps are a tenth of a second: a full run
    work, scheduler = queue_of([700])
    _, q = advance(work, scheduler)
    assert COST(1, q - 1) < LEAST_RUN_S < COST(1, q + 2)


def test_many_rows_that_wait_make_long_runs() -> None:
    work, scheduler = queue_of([100] * 400)
    rows, q = advance(work, scheduler)
    assert 0.009 < COST(len(rows), q) <= 0.01


def test_bulk_rows_alone_make_long_runs_and_short_ones_where_interactive_rows_come() -> None:
    work, scheduler = queue_of([10_000] * 8, is_bulk=True)
    rows, q = advance(work, scheduler)
    assert COST(len(rows), q) > 0.009
    (short,) = add(work, scheduler, [1]).tolist()
    rows, q = advance(work, scheduler)
    assert COST(len(rows), q) <= LEAST_RUN_S
    assert work.done[short] == 1
    for _ in range(BULK_CAUTION):
        rows, q = advance(work, scheduler)
        assert COST(len(rows), q) <= LEAST_RUN_S
    rows, q = advance(work, scheduler)
    assert COST(len(rows), q) > 0.009


@given(
    st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=1, max_size=60),
    st.lists(st.lists(st.integers(1, 300), max_size=4), max_size=12),
    st.integers(1, 32),
)
def test_every_ready_row_runs_within_a_bounded_number_of_runs(
    first: list[tuple[int, bool]], later: list[list[int]], max_rows: int
) -> None:
    work = Work(512, 1)
    scheduler = Scheduler(work, CounterRuntime(), COST, max_rows=max_rows, budget_s=0.01)
    for length, is_bulk in first:
        add(work, scheduler, [length], is_bulk=is_bulk)
    total, most, runs = work.num_used, 0, 0
    newcomers = list(later)
    while scheduler.has_ready:
        if newcomers:
            lengths = newcomers.pop()
            if lengths:
                add(work, scheduler, lengths)
                total += len(lengths)
        ready = scheduler.ready
        rows, steps = scheduler.next()
        assert 1 <= len(rows) <= max_rows
        assert np.isin(rows, ready).all()
        assert (work.done[rows] + steps <= work.steps[rows]).all()
        assert steps[0] == 1 or COST.of_ragged(steps) <= 0.01 + 1e-9
        work.done[rows] += steps
        most = max(most, int(work.waited[scheduler.ready].max(initial=0)))
        going = rows[work.done[rows] < work.steps[rows]]
        if len(going):
            scheduler.add(going)
        runs += 1
        assert runs <= sum(work.steps)
    assert (work.done[: work.capacity] == work.steps).all()
    # its turn comes after those in front of it, each passed over once at most, and a bulk row's patience
    assert most <= 8 + 2 * (1 + total // max_rows) + 2
