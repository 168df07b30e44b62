"""`cellar-models study gradients`: what is measured, and in which sizes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from cellar_models.lessons import learner as cells
from cellar_models.lessons.gradients import input_gradients, norms_through_time
from cellar_models.lessons.learner import WINDOW, Cell, Learner, Training, adam, learn
from cellar_models.lessons.tasks import Adding, Copying, Task

TASKS: dict[str, Task] = {task.name: task for task in (Adding(), Copying())}
STARTS = (cells.RNN_TORCH, cells.RNN, cells.RNN_GAIN, cells.LSTM_TORCH, cells.LSTM, cells.LSTM_LENGTH, cells.GRU)
TRAINED = (cells.RNN_TORCH, cells.RNN, cells.LSTM, cells.LSTM_LENGTH, cells.GRU)
# Plain descent, by which an explosion is seen as it is: Adam divides each gradient by what it was before.
CLIPPED_AT, RATE, MOMENTUM = 1.0, 0.01, 0.9


@dataclass(frozen=True)
class Plan:
    """Sizes of a study. shown_length: of the sequences through which gradients are followed (one of `lengths`);
    longest_torch: beyond it an RNN with PyTorch's start, whose gradient is gone long before, is not trained;
    clipping_length, clipping_updates: of the copying task without and with clipping, for each of `clipping_seeds`."""

    lengths: tuple[int, ...] = (50, 100, 200, 500)
    num_updates: int = 1000
    shown_length: int = 200
    longest_torch: int = 100
    clipping_length: int = 50
    clipping_updates: int = 600
    clipping_seeds: tuple[int, ...] = (1, 2, 3)
    seed: int = 1


QUICK = Plan((6, 12), WINDOW, 12, 6, 6, 10, (1,))


@dataclass
class Findings:
    """Everything that the page shows, as plain lists and numbers (see `write_page`). minutes: of processor time."""

    plan: Plan
    starts: dict[str, Any] = field(default_factory=dict)
    trained: dict[str, Any] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    clipping: list[dict[str, Any]] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    minutes: float = 0.0


def lengths_run(found: Findings, task: str) -> list[int]:
    """Those at which a task was run with some cell."""
    return [
        length for length in found.plan.lengths if any((r["task"], r["length"]) == (task, length) for r in found.runs)
    ]


def study(found: Findings, say: Callable[[str], None]) -> None:
    """Fills in what `found` lacks of its plan, the same numbers for the same plan; `say` is called after each training,
    when `found` is as good as it has come."""
    plan, begun, before = found.plan, time.process_time(), found.minutes
    adding, length = TASKS["adding"], plan.shown_length
    for cell in STARTS:
        learner = _start(cell, adding, length, plan.seed)
        states, inputs = norms_through_time(learner, adding, length, plan.seed)
        found.starts[cell.label] = {"state": states, "input": inputs}
        found.parameters[cell.label] = learner.num_parameters
    if not found.clipping:
        found.clipping = [run for seed in plan.clipping_seeds for run in _clipping(plan, seed)]
    done = {(run["length"], run["task"], run["cell"]) for run in found.runs}
    for length, (name, task), cell in itertools.product(plan.lengths, TASKS.items(), TRAINED):
        if (length, name, cell.label) in done or (cell is cells.RNN_TORCH and length > plan.longest_torch):
            continue
        learner = _start(cell, task, length, plan.seed)
        training = learn(learner, task, length, adam(learner, task), num_updates=plan.num_updates, seed=plan.seed)
        found.runs.append(_run(name, cell, length, training))
        if task is adding and length == plan.shown_length:
            states, inputs = norms_through_time(learner, task, length, plan.seed)
            one, marked = input_gradients(learner, task, length, plan.seed)
            found.trained[cell.label] = {"state": states, "input": inputs, "one": one, "marked": marked}
        found.minutes = round(before + (time.process_time() - begun) / 60, 2)
        after = f"solved after {training.solved_after}" if training.solved_after else "not solved"
        say(f"{name}, {length} steps, {cell.label}: {after}, {task.score_name} {training.final:.4f}")


def _start(cell: Cell, task: Task, length: int, seed: int) -> Learner:
    torch.manual_seed(seed)
    return Learner(cell, task.input_size, task.output_size, length)


def _run(task: str, cell: Cell, length: int, training: Training) -> dict[str, Any]:
    scores = training.scores
    curve = [round(sum(scores[i : i + WINDOW]) / WINDOW, 5) for i in range(0, len(scores) - WINDOW + 1, WINDOW)]
    return {
        "task": task, "cell": cell.label, "length": length, "solved_after": training.solved_after,
        "final": round(training.final, 5), "curve": curve,
    }  # fmt: skip


def _clipping(plan: Plan, seed: int) -> list[dict[str, Any]]:
    """An orthogonal RNN by plain gradient descent with momentum, without and with clipping."""
    task, made = TASKS["copying"], []
    for max_norm in (float("inf"), CLIPPED_AT):
        learner = _start(cells.RNN, task, plan.clipping_length, seed)
        training = learn(
            learner, task, plan.clipping_length, torch.optim.SGD(learner.parameters(), lr=RATE, momentum=MOMENTUM),
            num_updates=plan.clipping_updates, seed=seed, max_norm=max_norm,
        )  # fmt: skip
        made.append(
            {
                "seed": seed, "is_clipped": max_norm == CLIPPED_AT, "final": round(training.final, 4),
                "norms": [float(f"{v:.3g}") for v in training.norms],
                "losses": [float(f"{v:.3g}") for v in training.losses],
            }
        )  # fmt: skip
    return made
