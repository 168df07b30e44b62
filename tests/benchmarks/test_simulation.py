"""Mixed lengths in simulated time, by the costs that were measured: the same figures each time."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.simulation import BatchOfOne, Buckets, Cells, Costs, Padded, highest_load, mixed_lengths, simulate

COUNT = 1500


@pytest.fixture(scope="module")
def price() -> Costs:
    return Costs()


def rate(queue, lengths) -> float:
    return len(lengths) / float(simulate(queue, np.zeros(len(lengths))).max())


def test_a_run_costs_what_was_measured_and_between_that(price):
    assert price(1, 1) == pytest.approx(154e-6)
    assert price(1, 1) < price(3, 1) < price(4, 5) < price(256, 330)


def test_saturated_mixed_lengths(price):
    lengths = mixed_lengths(COUNT)
    ours = rate(Cells(lengths, price), lengths)
    assert ours >= 1.8 * rate(BatchOfOne(lengths, price), lengths)
    assert ours >= 4.0 * rate(Padded(lengths, price), lengths)
    assert ours >= 1.1 * rate(Buckets(lengths, price), lengths)


def test_the_tail_below_capacity_is_no_worse_than_that_of_a_batch_of_one(price):
    lengths = mixed_lengths(COUNT)
    load = 0.8 * rate(BatchOfOne(lengths, price), lengths)
    arrivals = np.cumsum(np.random.default_rng(2).exponential(1 / load, COUNT))
    p99 = [np.quantile(simulate(arm(lengths, price), arrivals), 0.99) for arm in (Cells, BatchOfOne)]
    assert p99[0] <= p99[1]


def test_the_highest_load_with_a_short_tail(price):
    lengths = mixed_lengths(COUNT)
    ours, one, buckets = (
        highest_load(lambda given, arm=arm: arm(given, price), lengths) for arm in (Cells, BatchOfOne, Buckets)
    )
    assert ours >= 1.6 * one
    assert ours >= 1.1 * buckets


def test_short_rows_beside_long_ones(price):
    rng = np.random.default_rng(3)
    lengths = np.where(rng.random(COUNT) < 0.1, 330, 1)
    load = 0.8 * rate(BatchOfOne(lengths, price), lengths)
    arrivals = np.cumsum(rng.exponential(1 / load, COUNT))
    took = {arm: simulate(arm(lengths, price), arrivals)[lengths == 1] for arm in (Cells, Padded, Buckets)}
    p99 = {arm: float(np.quantile(each, 0.99)) for arm, each in took.items()}
    assert 5 * p99[Cells] <= p99[Padded]
    assert 2 * p99[Cells] <= p99[Buckets]


def test_equal_lengths_are_the_control(price):
    lengths = np.full(512, 16)
    rates = [rate(arm(lengths, price), lengths) for arm in (Cells, Padded, Buckets)]
    assert max(rates) <= 1.15 * min(rates)
