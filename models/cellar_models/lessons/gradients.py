"""How much of a loss's gradient is left t steps back in time: backpropagation through time, measured."""

from __future__ import annotations

import copy

import torch

from cellar_models.lessons.learner import Learner
from cellar_models.lessons.tasks import Task


def norms_through_time(
    learner: Learner, task: Task, length: int, seed: int, batch: int = 8
) -> tuple[list[float], list[float]]:
    """Norms of the gradient of the loss after the last step, by how many steps back it is taken: of the state (h and,
    for an LSTM, c: all that goes from one step to the next), and of the input.

    Each is the geometric mean over `batch` sequences, relative to what it is for the last state or the last input.
    Computed in float64: in float32 a vanished gradient is a subnormal number and then zero.
    """
    exact = copy.deepcopy(learner).double()
    x, goal = task.draw(batch, length, torch.Generator().manual_seed(seed))
    steps = [x[:, t : t + 1].double().requires_grad_() for t in range(x.shape[1])]
    states = [torch.zeros(batch, exact.recurrent.state_size, dtype=torch.float64, requires_grad=True)]
    outputs = []
    for step in steps:
        _, state = exact.recurrent(step, states[-1])
        states.append(state)
        # the head reads the state as it goes on, so that a gradient to the last state is one
        outputs.append(exact.head(state[:, None, : exact.recurrent.hidden_size]))
    loss = batch * task.loss(torch.cat(outputs, dim=1), goal.to(torch.float64) if goal.is_floating_point() else goal)
    of_states = torch.autograd.grad(loss, states[1:], retain_graph=True)
    of_inputs = torch.autograd.grad(loss, steps)
    return _relative(of_states), _relative(of_inputs)


def _relative(gradients: tuple[torch.Tensor, ...]) -> list[float]:
    """Newest first: geometric means of the norms by row, over the newest one's."""
    logs = torch.stack([g.flatten(1).norm(dim=1).clamp(min=1e-300).log() for g in reversed(gradients)])  # [time, batch]
    return [float(f"{value:.4g}") for value in (logs - logs[:1]).mean(1).exp().tolist()]


def input_gradients(learner: Learner, task: Task, length: int, seed: int) -> tuple[list[float], list[int]]:
    """For one sequence of the adding task: the norm of the gradient for each step's input over the largest one, oldest
    first, and the places of the two marked steps."""
    exact = copy.deepcopy(learner).double()
    x, goal = task.draw(1, length, torch.Generator().manual_seed(seed))
    x = x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(task.loss(exact(x), goal.double()), x)
    # of the values: the first number of a step
    sizes = gradient[0, :, 0].abs()
    marked = x[0, :, 1].nonzero()[:, 0].tolist()
    return [float(f"{v:.4g}") for v in (sizes / sizes.max()).tolist()], marked
