"""Overload over real gRPC: what is computed is answered in time, and the rest is refused with a delay."""

from __future__ import annotations

import pytest

from benchmarks import overload


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("honours", [False, True])
def test_little_is_computed_in_vain_at_three_and_a_half_times_capacity(honours: bool) -> None:
    results = overload.main(["--seconds", "4", "--hidden", "1024", "--factors", "3.5"])
    (result,) = [each for each in results if each["honours_delay"] is honours]
    refused = result["refused"]
    assert isinstance(refused, dict)
    # every chunk was answered, refused or never sent
    assert result["in_time"] + result["late"] + result["unsent"] + sum(refused.values()) == result["offered"]
    assert refused.get("OVERLOADED", 0) > 0
    assert set(refused) <= {"OVERLOADED", "DEADLINE_EXCEEDED"}
    assert result["delay_ms_median"] > 0
    # counted in steps, not in seconds: of what was computed hardly anything came too late
    assert result["steps_computed"] == result["in_time"] + result["late"]
    assert result["late"] <= 0.2 * result["steps_computed"]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_below_capacity_nothing_is_refused() -> None:
    results = overload.main(["--seconds", "3", "--hidden", "512", "--factors", "0.3", "--deadline-ms", "2000"])
    for result in results:
        assert result["refused"] == {}
        assert result["in_time"] == result["offered"]
