"""Random faults under load: nothing lost, nothing doubled; and the harness sees it where something is."""

from __future__ import annotations

import pytest

from tests.e2e import faults
from tests.e2e.cluster import needs_redis

pytestmark = needs_redis


@pytest.mark.parametrize("durability", ["step", "interval"])
def test_a_few_faults_of_every_kind(durability: str) -> None:
    kinds = ["kill_before_reply", "kill_before_reply", "cut", "pause", "restart_redis"]
    report = faults.run(40, durability, seed=1, kinds=kinds, max_faults=5)
    assert report.is_clean, report.summary()
    assert report.faults.total() >= 3, report.summary()


def test_the_harness_fails_where_chunks_are_not_deduplicated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLAR_TEST_NO_DEDUPLICATION", "1")
    report = faults.run(60, "step", seed=1, kinds=["kill_before_reply"], max_faults=4)
    assert report.doubled > 0, report.summary()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("durability", ["step", "interval"])
def test_ten_minutes_of_random_faults(durability: str) -> None:
    report = faults.run(600, durability, seed=2)
    print(report.summary())
    assert report.is_clean, report.summary()
    assert report.faults.total() >= 100, report.summary()
    assert report.between_commit_and_reply >= 25, report.summary()
    assert len(report.faults) == 7
