"""docs/cells.md: the same network with an RNN, an LSTM and a GRU, a table for each model that was compared."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from string import Template

from cellar_models.lessons.trials import Trial

TEMPLATE = Path(__file__).parent / "cells.md.in"
# A model for each mode, in the order of the page.
COMPARED = ("digits", "describe", "sentiment", "forecast")


def keep(trials: list[Trial], docs: Path) -> Path:
    """Writes a model's trials beside the page; gives the file."""
    path = docs / "cells" / f"{trials[0].model}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(trial) for trial in trials], indent=1) + "\n", "utf-8")
    return path


def kept(docs: Path) -> dict[str, list[Trial]]:
    """The trials of every model that was compared, in the page's order."""
    found = {}
    for path in sorted((docs / "cells").glob("*.json"), key=lambda p: (*COMPARED, p.stem).index(p.stem)):
        found[path.stem] = [Trial(**trial) for trial in json.loads(path.read_text("utf-8"))]
    return found


def write_cells(docs: Path) -> Path:
    """The page, from the trials that are kept beside it."""
    path = docs / "cells.md"
    path.write_text(render(kept(docs)), "utf-8")
    return path


def render(trials: dict[str, list[Trial]]) -> str:
    """The page's text."""
    parts = "\n\n".join(_part(name, several) for name, several in trials.items())
    lacking = [name for name in COMPARED if name not in trials]
    missing = f"\n\nNot compared yet: {', '.join(lacking)}." if lacking else ""
    return Template(TEMPLATE.read_text("utf-8")).substitute(models=parts + missing)


def _part(name: str, trials: list[Trial]) -> str:
    first = trials[0]
    seeds = f"{len(first.seeds)} trainings each" if len(first.seeds) > 1 else "one training each"
    rows = [
        f"| {trial.kind.upper()} of {trial.hidden_size}{' (the zoo)' if trial.is_shipped else ''} "
        f"| {_range(trial.scores, 4)} | {trial.num_parameters} | {trial.state_size} "
        f"| {1000 * trial.ms_per_step:.0f} | {1000 * sum(trial.seconds) / sum(trial.num_updates):.1f} "
        f"| {_range(trial.num_epochs, 0)} | {_range(trial.seconds, 0)} |"
        for trial in trials
    ]
    head = (
        f"| cell | {first.metric} | parameters | numbers of state | µs a step served | ms an update | epochs "
        "| training s |\n" + "|---" * 8 + "|\n"
    )
    return f"## {name}: {first.mode}\n\nUnit: {first.unit}; {seeds}.\n\n{head}" + "\n".join(rows)


def _range(values: list[float] | list[int], digits: int) -> str:
    """The mean and, where there are several, the least and the most."""
    mean = f"{sum(values) / len(values):.{digits}f}"
    least, most = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return mean if least == most else f"{mean} ({least} to {most})"
