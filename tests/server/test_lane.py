"""When an engine stays awake for rows: behind a lone row alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from cellar_server.front.lanes import EngineLane


class Bell:
    """Says how it was waited for."""

    def __init__(self) -> None:
        self.waits: list[bool] = []

    def ring(self) -> None:
        pass

    def wait(self, timeout_s: float, stays_awake: bool) -> None:
        self.waits.append(stays_awake)


class Lanes:
    """One lane, rows put in by hand."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.rows: list[Any] = []
        self.transport = SimpleNamespace(set_bell=lambda number, bell: None)
        self.registry = SimpleNamespace(chunks=SimpleNamespace(take=lambda engine: []))
        self.watched = SimpleNamespace(admit=lambda rows, engine: rows)

    def new_bell(self) -> Bell:
        return self.bell

    def take(self, number: int) -> list[Any]:
        taken, self.rows = self.rows, []
        return taken


def test_an_engine_stays_awake_only_when_a_lone_row_ended_its_last_wait() -> None:
    lanes = Lanes()
    lane = EngineLane(lanes, SimpleNamespace(number=0))  # type: ignore[arg-type]
    # rows of each batch that is there when the wait has ended; none: something in the inbox ended it
    came = [[], [1], [], [1], [1], [2], [1, 1], [1], []]
    for counts in came:
        lane.wait(-1.0)
        lanes.rows = [SimpleNamespace(call=np.zeros(count)) for count in counts]
        assert lane.take() != [] or not counts
        assert lane.take() == []  # to look again changes nothing
    assert lanes.bell.waits == [False, *(counts == [1] for counts in came[:-1])]
