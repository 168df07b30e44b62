"""The index of ids against a dictionary."""

from __future__ import annotations

import numpy as np
from cellar_server.sessions.answers import Answers
from cellar_server.sessions.index import Index
from cellar_server.sessions.table import Table
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

# few numbers, so that keys come again; some share a half
KEYS = st.one_of(
    st.sampled_from([0, 1, 1 << 64, (1 << 64) + 1, (1 << 128) - 1, "", "a", "ab"]),
    st.integers(0, (1 << 128) - 1),
    st.integers(0, 300),
)


class Likeness(RuleBasedStateMachine):
    """Any adds and removes leave what a dictionary would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.index, self.model = Index(10_000), {}

    @rule(key=KEYS, place=st.integers(0, 1 << 47))
    def add(self, key: str | int, place: int) -> None:
        is_new = key not in self.model
        assert self.index.add(key, place) == (is_new or (isinstance(key, str) and self.model[key] == place))
        self.model.setdefault(key, place)

    @rule(start=st.integers(0, 1 << 100), count=st.integers(1, 200))
    def add_many(self, start: int, count: int) -> None:
        for key in range(start, start + count):
            assert self.index.add(key, 7) == (key not in self.model)
            self.model.setdefault(key, 7)

    @rule(key=KEYS)
    def remove(self, key: str | int) -> None:
        self.index.remove(key)
        self.model.pop(key, None)

    @rule(part=st.integers(1, 5))
    def remove_many(self, part: int) -> None:
        for key in list(self.model)[::part]:
            self.index.remove(key)
            del self.model[key]

    @rule(key=KEYS)
    def look(self, key: str | int) -> None:
        assert self.index.get(key) == self.model.get(key)
        assert (key in self.index) == (key in self.model)

    @invariant()
    def agrees(self) -> None:
        assert len(self.index) == len(self.model)
        assert dict(self.index.items()) == self.model


Likeness.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestLikeness = Likeness.TestCase


def test_a_number_takes_few_bytes_and_opening_and_closing_does_not_grow_it() -> None:
    index = Index(200_000)
    rng = np.random.default_rng(0)
    keys = [int(a) << 64 | int(b) for a, b in rng.integers(0, 1 << 63, (50_000, 2), np.uint64)]
    for place, key in enumerate(keys):
        assert index.add(key, place)
    assert 24 + index._table.nbytes / len(index) <= 36
    assert [index.get(key) for key in keys[::97]] == list(range(0, 50_000, 97))
    size = len(index._table)
    for _ in range(3):
        for key in keys:
            index.remove(key)
        for place, key in enumerate(keys):
            index.add(key, place)
    assert (len(index), index._fresh, len(index._table)) == (50_000, 50_000, size)


def test_a_session_takes_less_than_150_bytes_beside_its_row() -> None:
    """Every column of the table, the counters of its stored answers, and its place in the index."""
    capacity = 1000
    table, answers = Table(capacity, 256, 1), Answers(capacity, 4, (1,), 1 << 16)
    columns = [
        value
        for owner in (table, answers)
        for value in vars(owner).values()
        if isinstance(value, np.ndarray) and len(value) == capacity and value is not table.state
    ]
    each = sum(column.itemsize for column in columns)
    assert len(columns) >= 14
    assert each + 40 <= 150
