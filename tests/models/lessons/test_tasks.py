"""Adding and copying, as they are drawn and judged."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models.lessons.tasks import Adding, Copying  # noqa: E402


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length", [2, 51, 100])
def test_two_numbers_are_marked_one_in_each_half(length: int) -> None:
    x, goal = Adding().draw(500, length, random())
    values, marks = x[..., 0], x[..., 1]
    assert x.shape == (500, length, 2)
    assert 0 <= values.min() < values.max() <= 1
    assert (marks[:, : length // 2].sum(1) == 1).all()
    assert (marks[:, length // 2 :].sum(1) == 1).all()
    assert torch.equal(goal, (values * marks).sum(1))


def test_who_always_says_one_has_the_chance_score_of_adding() -> None:
    task = Adding()
    _, goal = task.draw(20_000, 10, random())
    assert task.score(torch.ones(20_000, 10, 1), goal) == pytest.approx(task.chance, abs=0.005)
    assert not task.is_solved(task.chance)
    assert task.is_solved(task.score(goal[:, None, None].expand(-1, 10, 1), goal))


def test_symbols_are_asked_for_after_the_blanks() -> None:
    task = Copying()
    x, goal = task.draw(30, 40, random())
    ids = x.argmax(2)
    n = task.num_kept
    assert x.shape == (30, n + 40 + n, task.input_size)
    assert (x.sum(2) == 1).all()
    assert torch.equal(ids[:, :n], goal)
    assert (goal < task.num_symbols).all()
    sign = task.num_symbols + 1
    assert (ids[:, n + 40 - 1] == sign).all()
    assert int((ids == sign).sum()) == 30
    assert (ids[:, n : n + 39] == task.num_symbols).all()
    assert (ids[:, n + 40 :] == task.num_symbols).all()


def test_only_the_answer_counts_in_copying() -> None:
    task = Copying()
    _, goal = task.draw(200, 10, random())
    y = torch.randn(200, 10 + 2 * task.num_kept, 8, generator=random())
    assert task.score(y, goal) == pytest.approx(task.chance, abs=0.05)
    y[:, -task.num_kept :] = 20 * torch.nn.functional.one_hot(goal, 8).float()
    assert task.score(y, goal) == 1.0
    assert float(task.loss(y, goal)) < 1e-6
    assert task.is_solved(1.0)
    assert not task.is_solved(0.9)
