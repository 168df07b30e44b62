"""The study's pictures, as SVG files of some tens of kilobytes that are the same for the same findings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cellar_models.lessons import learner as cells
from cellar_models.lessons.learner import WINDOW, Cell
from cellar_models.lessons.study import CLIPPED_AT, STARTS, TASKS, TRAINED, Findings, lengths_run

COLOURS = {
    cells.RNN_TORCH.label: "#d98c5f",
    cells.RNN.label: "#a63603",
    cells.RNN_GAIN.label: "#cc3377",
    cells.LSTM_TORCH.label: "#9ecae1",
    cells.LSTM.label: "#4292c6",
    cells.LSTM_LENGTH.label: "#08306b",
    cells.GRU.label: "#238b45",
}
# What is below is drawn at the edge.
LEAST = 1e-16
# Letters stay text: small files, and the reader's own font. The salt makes the names of parts the same each time.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "cellar", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 1.4,
}  # fmt: skip


@contextmanager
def _figure(path: Path, columns: int, width: float, height: float, *, share_y: bool = True) -> Iterator[list[Axes]]:
    """A row of axes in a figure that is written to `path`."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield list(figure.subplots(1, columns, sharey=share_y, squeeze=False)[0])
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def trained_cells(found: Findings) -> list[Cell]:
    """Those that were trained at the length through which gradients are followed."""
    return [cell for cell in TRAINED if cell.label in found.trained]


def _clamped(values: list[float]) -> list[float]:
    return [max(value, LEAST) for value in values]


def plot_starts(found: Findings, path: Path) -> None:
    """The gradient of the state, by steps back, before any training."""
    with _figure(path, 1, 8, 3.6) as (axes,):
        for cell in STARTS:
            axes.semilogy(_clamped(found.starts[cell.label]["state"]), color=COLOURS[cell.label], label=cell.label)
        axes.set(xlabel="steps back", ylabel="gradient of the state, over the last one's", ylim=(LEAST, 1e8))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def plot_trained(found: Findings, path: Path) -> None:
    """The same before and after training on the adding task."""
    shown = trained_cells(found)
    with _figure(path, len(shown), 10, 2.7) as row:
        for axes, cell in zip(row, shown, strict=True):
            colour = COLOURS[cell.label]
            axes.semilogy(_clamped(found.starts[cell.label]["state"]), "--", color=colour, alpha=0.7)
            axes.semilogy(_clamped(found.trained[cell.label]["state"]), color=colour)
            axes.set(title=_wrapped(cell.label), xlabel="steps back", ylim=(LEAST, 1e8))
        row[0].set(ylabel="gradient of the state")


def plot_inputs(found: Findings, path: Path) -> None:
    """For one sequence, which inputs the loss of a trained network hangs on."""
    shown = trained_cells(found)
    with _figure(path, len(shown), 10, 2.5) as row:
        for axes, cell in zip(row, shown, strict=True):
            trained = found.trained[cell.label]
            for at in trained["marked"]:
                axes.axvline(at, color="#bbbbbb", linewidth=3, zorder=0)
            axes.semilogy([max(v, 1e-6) for v in trained["one"]], color=COLOURS[cell.label], linewidth=1)
            axes.set(title=_wrapped(cell.label), xlabel="step", ylim=(1e-6, 2))
        row[0].set(ylabel="gradient of the value")


def plot_task(found: Findings, name: str, path: Path) -> None:
    """Scores over updates, a panel for each length."""
    task, lengths = TASKS[name], lengths_run(found, name)
    with _figure(path, len(lengths), max(6, 2.5 * len(lengths)), 3.1) as row:
        for axes, length in zip(row, lengths, strict=True):
            axes.axhline(task.chance, color="#888888", linestyle=":", linewidth=1)
            for run in found.runs:
                if (run["task"], run["length"]) == (name, length):
                    updates = [WINDOW * (k + 1) for k in range(len(run["curve"]))]
                    axes.plot(updates, run["curve"], color=COLOURS[run["cell"]], label=run["cell"])
                    if run["solved_after"]:
                        axes.plot(updates[-1:], run["curve"][-1:], "o", color=COLOURS[run["cell"]], markersize=4)
            axes.set(title=f"{length} steps", xlabel="updates", xlim=(0, found.plan.num_updates))
            if name == "adding":
                axes.set(yscale="log", ylim=(1e-3, 1))
        row[0].set(ylabel=task.score_name)
        handles, labels = row[0].get_legend_handles_labels()
        row[0].figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def plot_clipping(found: Findings, path: Path) -> None:
    """Norm of the gradient and loss of each update, without and with clipping, from the first seed."""
    with _figure(path, 2, 8, 2.9, share_y=False) as (left, right):
        for run in found.clipping[:2]:
            colour, label = ("#08306b", f"clipped at {CLIPPED_AT:g}") if run["is_clipped"] else ("#a63603", "as it is")
            left.semilogy(run["norms"], color=colour, label=label, linewidth=0.9)
            right.plot(run["losses"], color=colour, label=label, linewidth=0.9)
        right.axhline(math.log(8), color="#888888", linestyle=":", linewidth=1)
        left.set(xlabel="updates", ylabel="norm of the gradient")
        right.set(xlabel="updates", ylabel="loss (dotted: chance)")
        right.legend(frameon=False)


def _wrapped(label: str) -> str:
    return label.replace(", ", ",\n", 1)


PLOTS: dict[str, Any] = {
    "start.svg": plot_starts,
    "trained.svg": plot_trained,
    "inputs.svg": plot_inputs,
    "adding.svg": lambda found, path: plot_task(found, "adding", path),
    "copying.svg": lambda found, path: plot_task(found, "copying", path),
    "clipping.svg": plot_clipping,
}
