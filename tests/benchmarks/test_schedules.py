"""When calls arrive, how long they are, and how the highest load is found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.schedules import burst, highest, mixed_lengths, most_hold, poisson, settled, short_beside_long


def test_a_burst_is_due_at_once():
    assert burst(np.array([3, 4])).tolist() == [[0, 3], [0, 4]]


@given(rate=st.floats(5, 2000), seconds=st.floats(0.5, 10), seed=st.integers(0, 99))
def test_arrivals_are_in_order_within_the_window_and_the_same_again(rate, seconds, seed):
    lengths = np.array([1, 2, 3])
    arrivals = poisson(rate, seconds, lengths, seed)
    times = arrivals[:, 0]
    assert (np.diff(times) >= 0).all()
    assert times.size == 0 or (times[0] >= 0 and times[-1] < seconds)
    assert arrivals[:, 1].tolist() == np.resize(lengths, len(times)).tolist()
    assert np.array_equal(arrivals, poisson(rate, seconds, lengths, seed))
    # six standard deviations
    assert abs(len(times) - rate * seconds) <= 6 * np.sqrt(rate * seconds) + 10


def test_the_gaps_of_arrivals_are_exponential():
    gaps = np.diff(poisson(1000, 100, np.array([1]), 0)[:, 0])
    assert gaps.mean() == pytest.approx(1e-3, rel=0.02)
    assert gaps.std() == pytest.approx(1e-3, rel=0.02)


def test_mixed_lengths_differ_by_seed_only():
    assert np.array_equal(mixed_lengths(2, 100), mixed_lengths(2, 100))
    assert not np.array_equal(mixed_lengths(2, 100), mixed_lengths(3, 100))


def test_each_ten_hold_nine_short_and_one_long():
    tens = short_beside_long(0, 500).reshape(-1, 10)
    assert (np.sort(tens, axis=1) == [4] * 9 + [300]).all()
    assert len({tuple(ten) for ten in tens}) > 1


@given(limit=st.floats(1.5, 90))
def test_the_highest_that_holds_is_found_to_within_the_halvings(limit):
    found = highest(lambda value: value <= limit, 1, 100, 10)
    assert found <= limit < found * 100 ** (2**-10) * 1.0001


def test_nothing_holds():
    assert highest(lambda value: False, 1, 2, 3) == 0


@pytest.mark.parametrize(
    ("limit", "found"), [(100, 100), (99, 100 / 1.04), (91, 0), (104, 104), (105, 104), (1000, 1.04**2 * 100)]
)
def test_what_holds_is_raised_and_what_does_not_is_lowered(limit, found):
    assert settled(lambda value: value <= limit, 100, tries=3) == pytest.approx(found)


@pytest.mark.parametrize(
    ("found", "is_held", "num_tries"),
    [([1, 1], True, 2), ([9, 9], False, 2), ([1, 9, 1], True, 3), ([9, 1, 9], False, 3)],
)
def test_most_of_three_tries_hold(found, is_held, num_tries):
    tries: list[float] = []
    assert most_hold(lambda at: found[at], 5, tries) is is_held
    assert tries == found[:num_tries]
