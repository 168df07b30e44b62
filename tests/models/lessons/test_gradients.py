"""Gradients through time are those of the equation; cells start and learn as they say."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import oracle  # noqa: E402
from cellar_models.lessons import learner as cells  # noqa: E402
from cellar_models.lessons.gradients import input_gradients, norms_through_time  # noqa: E402
from cellar_models.lessons.learner import WINDOW, Cell, Learner, Training, adam, learn  # noqa: E402
from cellar_models.lessons.tasks import Adding, Copying  # noqa: E402


def small(kind: str, start: str = "", length: int = 20) -> Learner:
    torch.manual_seed(3)
    return Learner(Cell(kind, kind, 6, start), 2, 1, length)


def test_an_rnns_norms_are_products_of_its_jacobians() -> None:
    learner, task, length, batch = small("rnn"), Adding(), 12, 4
    states, inputs = norms_through_time(learner, task, length, seed=5, batch=batch)
    x, goal = task.draw(batch, length, torch.Generator().manual_seed(5))
    layer = learner.recurrent.layers
    w, u, b, b2 = (p.detach().double().numpy() for p in layer.parameters())
    head = learner.head.weight.detach().double().numpy()[0]
    sizes = np.zeros((2, length, batch))
    for row in range(batch):
        h, hs = np.zeros((1, 6)), []
        for t in range(length):
            h = oracle.rnn_cell(x[row : row + 1, t].double().numpy(), h, w, u, b, b2)
            hs.append(h[0])
        error = hs[-1] @ head + float(learner.head.bias.detach()) - float(goal[row])
        gradient = 2 * error * head
        for back, h in enumerate(reversed(hs)):
            sizes[0, back, row] = np.linalg.norm(gradient)
            before = gradient * (1 - h**2)
            sizes[1, back, row] = np.linalg.norm(before @ w)
            gradient = before @ u
    expected = np.exp(np.log(sizes / sizes[:, :1]).mean(axis=2))
    np.testing.assert_allclose(states, expected[0], rtol=1e-3)
    np.testing.assert_allclose(inputs, expected[1], rtol=1e-3)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_gated_norms_are_those_of_small_changes(kind: str) -> None:
    """The gradient of the state t steps back, by differences instead of backpropagation."""
    learner, task, length, back = small(kind).double(), Adding(), 6, 3
    states, _ = norms_through_time(learner, task, length, seed=5, batch=1)
    x, goal = task.draw(1, length, torch.Generator().manual_seed(5))
    x = x.double()

    def norm(steps_back: int) -> float:
        with torch.no_grad():
            at = length - steps_back
            _, state = learner.recurrent(x[:, :at], torch.zeros(1, learner.recurrent.state_size).double())

            def loss(state: torch.Tensor) -> float:
                if steps_back:
                    _, state = learner.recurrent(x[:, at:], state)
                return float(task.loss(learner.head(state[:, None, :6]), goal))

            e = 1e-6 * torch.eye(state.shape[1]).double()
            return float(np.linalg.norm([(loss(state + d) - loss(state - d)) / 2e-6 for d in e]))

    assert states[back] == pytest.approx(norm(back) / norm(0), rel=2e-3)


def test_the_newest_is_one_and_sequences_are_whole() -> None:
    for task in (Adding(), Copying()):
        torch.manual_seed(0)
        learner = Learner(cells.GRU, task.input_size, task.output_size, 15)
        states, inputs = norms_through_time(learner, task, 15, seed=1)
        assert states[0] == inputs[0] == 1.0
        assert len(states) == len(inputs) == task.draw(1, 15, torch.Generator())[0].shape[1]


def test_input_gradients_name_the_marked_steps() -> None:
    sizes, marked = input_gradients(small("gru"), Adding(), 20, seed=2)
    assert len(sizes) == 20
    assert max(sizes) == 1.0
    assert marked[0] < 10 <= marked[1]


def test_starts_are_as_said() -> None:
    torch.manual_seed(3)
    plain = torch.nn.RNN(2, 6, batch_first=True)
    torch_start = small("rnn", "torch").recurrent.layers
    assert max(float(p.detach().abs().max()) for p in torch_start.parameters()) <= 6**-0.5
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in torch_start.named_parameters()}
    gain = small("rnn", "gain").recurrent.layers.weight_hh_l0.detach()
    assert torch.allclose(gain @ gain.T, 2.25 * torch.eye(6), atol=1e-5)
    bias = small("lstm", "length", 200).recurrent.layers.bias_ih_l0.detach()
    assert torch.equal(bias[:6], -bias[6:12])
    assert bias[6:12].min() >= 0
    assert bias[6:12].max() <= np.log(200)
    sizes = [Learner(cell, 2, 1, 50).num_parameters for cell in (cells.RNN, cells.LSTM, cells.GRU)]
    assert max(sizes) < 1.05 * min(sizes)


def trained(updates: int, max_norm: float = 1.0) -> tuple[Learner, Training]:
    torch.manual_seed(1)
    learner, task = Learner(Cell("GRU", "gru", 32), 2, 1, 4), Adding()
    return learner, learn(learner, task, 4, adam(learner, task), num_updates=updates, seed=1, max_norm=max_norm)


def test_a_short_task_is_solved_and_training_ends_there() -> None:
    _, found = trained(1500)
    assert found.solved_after == len(found.losses) < 1500
    assert found.solved_after % WINDOW == 0
    assert found.final < 0.02
    assert sum(found.losses[:20]) > 5 * sum(found.losses[-20:])


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, found = trained(60)
    second, again = trained(60)
    assert (found.losses, found.norms) == (again.losses, again.norms)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_clipping_bounds_an_update() -> None:
    moved = []
    for max_norm in (float("inf"), 1e-3):
        torch.manual_seed(1)
        learner, task = Learner(Cell("RNN", "rnn", 8), 2, 1, 4), Adding()
        before = [p.detach().clone() for p in learner.parameters()]
        descent = torch.optim.SGD(learner.parameters(), lr=1.0)
        found = learn(learner, task, 4, descent, num_updates=1, seed=1, max_norm=max_norm)
        changes = [(p.detach() - b).flatten() for p, b in zip(learner.parameters(), before, strict=True)]
        moved.append(float(torch.cat(changes).norm()))
        assert found.norms[0] > 0.01
    assert moved[0] == pytest.approx(found.norms[0], rel=1e-4)
    assert moved[1] == pytest.approx(1e-3, rel=1e-2)
