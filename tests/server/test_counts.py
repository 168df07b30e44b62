"""What the engine counts of itself: waits, runs, refusals, first emissions and what the store does not have yet."""

from __future__ import annotations

import numpy as np
import pytest
from cellar_proto.v1.reason_pb2 import Reason
from cellar_server.sampling.sampler import Options
from cellar_server.sessions.histogram import SECONDS, Histogram
from cellar_server.sessions.messages import GenerateRequest, PredictRequest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.bench import Bench, reason_of
from tests.fakes.runtime import CounterRuntime, counter_model, generator_model
from tests.fakes.store import FakeStore

VALUES = st.one_of(st.sampled_from(SECONDS), st.floats(0, 100, allow_nan=False))


@given(st.lists(st.lists(VALUES, max_size=40), max_size=5))
def test_a_histogram_is_that_of_its_values_however_they_came(batches: list[list[float]]) -> None:
    together, alone = Histogram(), Histogram()
    for batch in batches:
        together.add_all(np.array(batch, np.float64))
        for value in batch:
            alone.add(value)
    values = [value for batch in batches for value in batch]
    assert together.bins == alone.bins
    assert together.total == pytest.approx(sum(values))
    expected = [sum(value <= bound for value in values) for bound in SECONDS]
    assert together.cumulative() == [*expected, len(values)]


def test_rows_wait_from_their_admission_to_their_first_run() -> None:
    bench = Bench(counter_model())
    handles = bench.open(3)
    bench.send(handles[:2], [0, 0], [[1.0], [1.0]])
    bench.clock.now += 0.02
    bench.send(handles[2:], [0], [[1.0]])
    bench.run()
    counts = bench.sessions.core.counts
    assert counts.queue.total == pytest.approx(0.04)
    assert counts.queue.cumulative()[SECONDS.index(0.01)] == 1
    assert counts.queue.cumulative()[SECONDS.index(0.025)] == counts.queue.cumulative()[-1] == 3
    assert sum(counts.run.bins) == counts.runs == 1


def test_each_refused_row_counts_by_its_reason() -> None:
    bench = Bench(counter_model(CounterRuntime(fail_on=frozenset({0}))), max_chunks_in_flight=1)
    a, b = bench.open(2)
    bench.send([a, b], [3, 0], [[1.0], [1.0]])  # a gap, and a chunk that runs and fails
    bench.send([b], [1], [[1.0]])  # too many in flight
    bench.send([a + (1 << 40)], [0], [[1.0]])  # nobody's handle
    bench.run()
    found = {reason_of(answer) for answer in bench.take().values()}
    refusals = {Reason.Name(reason): count for reason, count in bench.sessions.core.counts.refusals.items()}
    assert refusals == {"POSITION_GAP": 1, "OVERLOADED": 1, "STALE_HANDLE": 1, "RUN_FAILED": 1}
    assert found == refusals.keys()


def test_refused_calls_sequences_and_generations_count_too() -> None:
    bench = Bench(counter_model())
    sequence = np.array([1.0], np.float32).tobytes()
    bench.sessions.admit(
        [PredictRequest("me", [1, 0], 0, [], sequence, True), PredictRequest("me", [], 0, [], b"", True)]
    )
    bench.sessions.admit([GenerateRequest("me", b"", b"", Options(0.0, 0, 0.0, 1, 5))])
    bench.run()
    refusals = bench.sessions.core.counts.refusals
    assert refusals == {Reason.EMPTY_INPUT: 2, Reason.UNSUPPORTED: 1}
    bench.sessions.open(["same"], stream=1)
    bench.sessions.open(["same"], stream=1)
    assert refusals[Reason.SESSION_EXISTS] == 1


def test_a_chunk_sent_again_while_it_waits_is_joined_and_later_repeated() -> None:
    bench = Bench(counter_model())
    (handle,) = bench.open()
    bench.send([handle], [0], [[1.0]])
    bench.send([handle], [0], [[1.0]])
    bench.run()
    bench.send([handle], [0], [[1.0]])
    counts = bench.sessions.core.counts
    assert (counts.chunks, counts.steps, counts.chunks_replayed, counts.chunks_joined) == (1, 1, 2, 1)
    assert not counts.refusals


def test_a_first_emission_is_timed_once_a_call() -> None:
    bench = Bench(generator_model())
    condition = np.zeros(1, np.float32).tobytes()

    def ask(to: object, position: int) -> None:
        options = Options(0.0, 0, 0.0, 1, 50)
        bench.sessions.admit([GenerateRequest(to, b"", condition, options, "kept", position, credits=2)])

    ask("first", 0)
    assert bench.sessions.generations.rows.num_live == 1
    bench.clock.now += 0.3
    bench.run()
    counts = bench.sessions.core.counts
    assert (counts.generations, counts.first_emission.total) == (1, pytest.approx(0.3))
    ask("again", 0)  # what it holds already comes at once: nobody waited for an emission
    ask("on", 2)
    bench.clock.now += 0.1
    bench.run()
    assert counts.generations == 1
    assert counts.first_emission.cumulative()[-1] == 2
    assert counts.first_emission.total == pytest.approx(0.4)
    assert counts.refusals == {Reason.CANCELLED: 2}  # the askers that others went on instead of


def test_the_lag_is_the_age_of_the_oldest_change_that_is_not_stored() -> None:
    store = FakeStore()
    bench = Bench(counter_model(), store=store, durability="interval", store_interval_s=1.0)
    durability = bench.sessions.durability
    assert (durability.lag_s, durability.num_unstored) == (0.0, 0)
    bench.open()
    bench.sessions.persist()
    assert durability.lag_s == 0.0  # the first write is at once
    handles = bench.open(2)
    bench.clock.now += 0.4
    bench.send(handles, [0, 0], [[1.0], [1.0]])
    bench.run()
    bench.sessions.persist()
    assert (durability.lag_s, durability.num_unstored) == (pytest.approx(0.4), 2)
    store.is_broken = True
    bench.clock.now += 0.6
    bench.sessions.persist()
    assert durability.lag_s == pytest.approx(1.0)
    assert bench.sessions.core.counts.store_failures == 1
    store.is_broken = False
    bench.clock.now += 1.0
    bench.sessions.persist()
    assert (durability.lag_s, durability.num_unstored) == (0.0, 0)
