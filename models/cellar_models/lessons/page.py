"""docs/why-lstm.md: its text is a template beside this file; its numbers, tables and pictures come from findings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any

from cellar_proto.v1.manifest_pb2 import Manifest
from google.protobuf import json_format

from cellar_models.lessons.learner import Cell
from cellar_models.lessons.plots import PLOTS, trained_cells
from cellar_models.lessons.study import STARTS, TASKS, TRAINED, Findings, Plan, lengths_run
from cellar_models.own.drawing import draw

TEMPLATE = Path(__file__).parent / "why-lstm.md.in"
# Pictures of trained networks, and a model of the zoo for each mode, in the template's order.
OF_TRAINED = ("trained.svg", "inputs.svg")
DRAWN = ("digits", "describe", "sentiment", "forecast")


def write_page(found: Findings, docs: Path, zoo: Path) -> list[Path]:
    """why-lstm.md and, in why-lstm/, its pictures and findings.json; gives what was written."""
    folder = docs / "why-lstm"
    folder.mkdir(parents=True, exist_ok=True)
    written = [docs / "why-lstm.md", folder / "findings.json"]
    written[0].write_text(render(found), "utf-8")
    write_findings(found, docs)
    for name, plot in PLOTS.items():
        if name in OF_TRAINED and not found.trained:
            continue
        plot(found, folder / name)
        written.append(folder / name)
    for name in DRAWN:
        path = zoo / name / "1" / "manifest.json"
        if path.is_file():
            written.append(folder / f"{name}.svg")
            written[-1].write_text(draw(json_format.Parse(path.read_text("utf-8"), Manifest())), "utf-8")
    return written


def write_findings(found: Findings, docs: Path) -> None:
    """findings.json alone."""
    path = docs / "why-lstm" / "findings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(found), separators=(",", ":")) + "\n", "utf-8")


def read_findings(docs: Path) -> Findings:
    """Those that the page in `docs` shows."""
    kept = json.loads((docs / "why-lstm" / "findings.json").read_text("utf-8"))
    plan: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in kept.pop("plan").items()
    }
    return Findings(Plan(**plan), **kept)


def render(found: Findings) -> str:
    """The page's text."""
    plan = found.plan
    numbers = {
        "length": plan.shown_length,
        "updates": plan.num_updates,
        "minutes": f"{found.minutes:.0f}",
        "clipping_length": plan.clipping_length,
        "starts": _starts(found),
        "trained": _trained(found),
        "adding": _task(found, "adding"),
        "copying": _task(found, "copying"),
        "clipping": _clipping(found),
        "missing": _missing(found),
        "solved": _solved(found),
    }
    text = TEMPLATE.read_text("utf-8")
    before, after_training, rest = text.split("<!-- trained -->\n")
    return Template(before + (after_training if found.trained else "") + rest).substitute(numbers)


def _row(*fields: object) -> str:
    return "| " + " | ".join(str(field) for field in fields) + " |"


def _table(head: list[object], rows: Sequence[Sequence[object]]) -> str:
    return "\n".join([_row(*head), "|" + "---|" * len(head), *(_row(*row) for row in rows)])


def _number(value: float) -> str:
    """Two digits from 0.01 to 100,000, else a power of ten."""
    if 100 <= value < 1e5:
        return f"{value:.0f}"
    return f"{value:.2g}" if 1e-2 <= value < 100 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _back(found: Findings) -> list[int]:
    """Steps back that the tables show."""
    last = found.plan.shown_length - 1
    return [steps for steps in (10, 50, 100) if steps < last] + [last]


def _starts(found: Findings) -> str:
    back = _back(found)
    rows = [
        [cell.label, found.parameters[cell.label], *(_number(found.starts[cell.label]["state"][k]) for k in back)]
        for cell in STARTS
    ]
    return _table(["cell and start", "parameters", *(f"{k} back" for k in back)], rows)


def _trained(found: Findings) -> str:
    back = _back(found)

    def change(cell: Cell, k: int) -> str:
        before, after = (kept[cell.label]["state"][k] for kept in (found.starts, found.trained))
        return f"{_number(before)} → {_number(after)}"

    rows = [
        [cell.label, *(change(cell, k) for k in back), _state(_runs(found, "adding", cell))]
        for cell in trained_cells(found)
    ]
    return _table(["cell", *(f"{k} back" for k in back), f"adding, {found.plan.shown_length} steps"], rows)


def _runs(found: Findings, task: str, cell: Cell, length: int = 0) -> dict[str, Any] | None:
    wanted = (task, cell.label, length or found.plan.shown_length)
    return next((run for run in found.runs if (run["task"], run["cell"], run["length"]) == wanted), None)


def _state(run: dict[str, Any] | None) -> str:
    if run is None:
        return "not run"
    if run["solved_after"]:
        return f"**after {run['solved_after']}**"
    return f"{run['final']:.3f}"


def _task(found: Findings, name: str) -> str:
    lengths = lengths_run(found, name)
    rows: list[list[object]] = [
        [cell.label, *(_state(_runs(found, name, cell, length)) for length in lengths)] for cell in TRAINED
    ]
    rows.append(["remembering nothing", *([f"{TASKS[name].chance:.3f}"] * len(lengths))])
    return _table([f"{TASKS[name].score_name}, or solved", *(f"{length} steps" for length in lengths)], rows)


def _solved(found: Findings) -> str:
    """Of each cell at which lengths it solved each task, in words."""
    lines = []
    for cell in TRAINED:
        said = []
        for name in TASKS:
            runs = [run for length in found.plan.lengths if (run := _runs(found, name, cell, length))]
            solved = [run["length"] for run in runs if run["solved_after"]]
            others = [run["length"] for run in runs if not run["solved_after"]]
            if not runs:
                continue
            if not solved:
                said.append(f"{name} solved at no length")
            else:
                rest = f", not at {_listed(others)}" if others else ""
                said.append(f"{name} solved at {_listed(solved)}{rest}")
        lines.append(f"- {cell.label}: {'; '.join(said) if said else 'not run'}.")
    return "\n".join(lines)


def _listed(lengths: list[int]) -> str:
    """Lengths in words."""
    head = ", ".join(map(str, lengths[:-1]))
    return f"{head} and {lengths[-1]} steps" if head else f"{lengths[-1]} steps"


def _missing(found: Findings) -> str:
    """What the plan has and these findings have not."""
    lacking = {
        name: [str(length) for length in found.plan.lengths if length not in lengths_run(found, name)] for name in TASKS
    }
    said = [f"{name} at {', '.join(lengths)} steps" for name, lengths in lacking.items() if lengths]
    if not said:
        return ""
    return f"\nNot run yet: {'; '.join(said)} (`cellar-models study gradients --resume` goes on with them).\n"


def _clipping(found: Findings) -> str:
    rows: list[list[object]] = []
    for plain, clipped in zip(found.clipping[::2], found.clipping[1::2], strict=True):
        rows.append(
            [
                plain["seed"],
                *(_number(max(run["norms"])) for run in (plain, clipped)),
                *(f"{run['final']:.3f}" for run in (plain, clipped)),
            ]
        )
    head = ["seed", "largest norm", "largest norm, clipped", "symbols right", "symbols right, clipped"]
    return _table(list(head), rows)
