"""The benchmark's arithmetic."""

import numpy as np
import pytest

from benchmarks.demo.story import drawing, rmse
from benchmarks.ratios import abba, compare, ratio, sequence_lengths


def test_windows_alternate_so_that_a_drift_hits_both_arms():
    assert abba(3) == ["A", "B", "B", "A", "A", "B"]


def test_a_linear_drift_cancels_over_two_pairs():
    order = abba(4)
    rates = [100.0 * (1 + 0.01 * at) for at in range(len(order))]
    assert ratio(order, rates).median == pytest.approx(1.0, abs=1e-3)


def test_ratio_is_that_of_neighbours():
    measured = ratio(["A", "B", "B", "A"], [8.0, 10.0, 20.0, 12.0])
    assert (measured.median, measured.low, measured.high) == pytest.approx((0.7, 0.65, 0.75))
    assert (measured.ours, measured.ceiling, measured.num_pairs) == (10.0, 15.0, 2)


@pytest.mark.parametrize(("order", "rates"), [([], []), (["A"], [1.0]), (["A", "A"], [1.0, 1.0]), (["A", "B"], [1.0])])
def test_windows_without_a_partner_are_refused(order, rates):
    with pytest.raises(ValueError, match="pair"):
        ratio(order, rates)


def test_compare_warms_both_arms_before_it_counts():
    calls = []
    compare(lambda: calls.append("A") or 1.0, lambda: calls.append("B") or 2.0, 2)
    assert calls == ["A", "B", "A", "B", "B", "A"]


def test_sequence_lengths_are_mixed_bounded_and_the_same_again():
    lengths = sequence_lengths(20_000)
    assert lengths.min() >= 1
    assert lengths.max() <= 330
    assert np.median(lengths) == pytest.approx(np.exp(2.897), rel=0.05)
    assert np.array_equal(lengths, sequence_lengths(20_000))


def test_drawing_is_eight_lines_dark_where_the_image_is():
    image = np.zeros(64)
    image[0] = 16
    lines = drawing(image)
    assert len(lines) == 8
    assert lines[0] == "@@" + " " * 14


def test_rmse():
    assert rmse(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == pytest.approx(2**0.5)
