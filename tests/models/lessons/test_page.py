"""`cellar-models study gradients`: the page and its pictures come from the findings, and say what they show."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models.cli import main
from cellar_models.lessons import learner as cells
from cellar_models.lessons.learner import Cell
from cellar_models.lessons.page import DRAWN, read_findings, render, write_page
from cellar_models.lessons.plots import PLOTS
from cellar_models.lessons.study import QUICK, TASKS, TRAINED, Findings, Plan, lengths_run, study

ROOT = Path(__file__).parents[3]
DOCS, ZOO = ROOT / "docs", ROOT / "models" / "zoo"


def studied(found: Findings) -> Findings:
    study(found, lambda text: None)
    return found


@pytest.fixture(scope="module")
def quick() -> Findings:
    return studied(Findings(QUICK))


def test_the_same_findings_make_the_same_files(quick: Findings, tmp_path: Path) -> None:
    first, second = (write_page(quick, tmp_path / name, ZOO) for name in ("one", "two"))
    assert {path.name for path in first} == {
        "why-lstm.md", "findings.json", *PLOTS, *(f"{name}.svg" for name in DRAWN)
    }  # fmt: skip
    for path, again in zip(first, second, strict=True):
        assert path.read_bytes() == again.read_bytes(), path.name
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert read_findings(tmp_path / "one") == dataclasses.replace(quick)


def test_what_is_lacking_is_filled_in_with_the_same_numbers(quick: Findings) -> None:
    part = dataclasses.replace(quick, runs=quick.runs[::2], trained={}, starts={}, clipping=[], minutes=1.0)
    wanted = [run for run in quick.runs if run["length"] == QUICK.shown_length and run["task"] == "adding"]
    part.runs = [run for run in part.runs if run not in wanted]
    again = studied(part)
    key = itemgetter("length", "task", "cell")
    assert sorted(again.runs, key=key) == sorted(quick.runs, key=key)
    assert (again.starts, again.trained, again.clipping) == (quick.starts, quick.trained, quick.clipping)
    assert again.minutes >= 1.0


def test_the_command_writes_the_page_again(quick: Findings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_page(quick, tmp_path, ZOO)
    (tmp_path / "why-lstm.md").write_text("gone")
    assert main(["study", "gradients", "--page", "--docs", str(tmp_path), "--zoo", str(ZOO)]) == 0
    assert (tmp_path / "why-lstm.md").read_text() == render(quick)
    assert f"wrote {tmp_path / 'why-lstm' / 'start.svg'}" in capsys.readouterr().out
    assert main(["study", "gradients", "--page", "--docs", str(tmp_path / "nowhere")]) == 1


def test_the_page_in_docs_is_made_from_its_findings() -> None:
    page = (DOCS / "why-lstm.md").read_text()
    assert page == render(read_findings(DOCS))
    for link in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (DOCS / link).is_file(), link
    for path in (DOCS / "why-lstm").glob("*.svg"):
        assert path.stat().st_size < 150_000
        ElementTree.parse(path)


def scores(found: Findings, task: str, cell: Cell) -> dict[int, float]:
    """Final scores by length."""
    return {run["length"]: run["final"] for run in found.runs if (run["task"], run["cell"]) == (task, cell.label)}


def solved(found: Findings, task: str, cell: Cell) -> dict[int, bool]:
    """Whether it solved the task, by length."""
    return {r["length"]: bool(r["solved_after"]) for r in found.runs if (r["task"], r["cell"]) == (task, cell.label)}


def up_to(found: Findings, longest: int) -> dict[int, bool]:
    """True for the lengths up to this one, False for the others."""
    return {length: length <= longest for length in found.plan.lengths}


def nearest(found: Findings, length: int) -> str:
    """The cell with the most symbols right."""
    runs = [run for run in found.runs if (run["task"], run["length"]) == ("copying", length)]
    return max(runs, key=itemgetter("final"))["cell"]


def at_marks(found: Findings, cell: Cell) -> float:
    """The gradient at the marked steps over the largest one at another."""
    kept = found.trained[cell.label]
    return min(kept["one"][k] for k in kept["marked"]) / max(
        value for k, value in enumerate(kept["one"]) if k not in kept["marked"]
    )


def largest(found: Findings, cell: Cell) -> int:
    """The step with the largest gradient."""
    one = found.trained[cell.label]["one"]
    return one.index(max(one))


def start(found: Findings, cell: Cell, back: int = 100) -> float:
    return found.starts[cell.label]["state"][back - 1]


RNNS = (cells.RNN, cells.RNN_TORCH)
# What the page says around its tables, which no run writes, and what must have been found for it.
CLAIMS: dict[str, Callable[[Findings], bool]] = {
    "An RNN as PyTorch starts it vanishes": lambda found: all(
        start(found, cell) < 1e-10 for cell in (cells.RNN_TORCH, cells.LSTM_TORCH, cells.GRU)
    ),
    "An RNN with orthogonal recurrent weights": lambda found: (
        start(found, cells.RNN) > 5e-3 and start(found, cells.RNN_GAIN) > 100
    ),
    "A forget bias of 1": lambda found: start(found, cells.LSTM_LENGTH) > start(found, cells.LSTM) > 5e-3,
    "No RNN learned to add": lambda found: all(
        not any(solved(found, "adding", cell).values()) and min(scores(found, "adding", cell).values()) > 0.15
        for cell in RNNS
    ),
    "A GRU adds": lambda found: solved(found, "adding", cells.GRU) == up_to(found, 500),
    "An LSTM whose gates start open": lambda found: (
        solved(found, "adding", cells.LSTM_LENGTH) == up_to(found, 200)
        and solved(found, "adding", cells.LSTM) == up_to(found, 0)
    ),
    "Copying needs no gate": lambda found: (
        {bool(run["solved_after"]) for run in found.runs if run["task"] == "copying"} == {False}
        and all(
            nearest(found, length) == (cells.RNN if length <= 100 else cells.LSTM_LENGTH).label
            for length in lengths_run(found, "copying")
        )
        and all(max(scores(found, "copying", cell).values()) < 0.2 for cell in (cells.RNN_TORCH, cells.LSTM))
    ),
    "A network that solved the task": lambda found: (
        min(at_marks(found, cells.GRU), at_marks(found, cells.LSTM_LENGTH)) > 10
        and start(found, cells.RNN, 199) > start(found, cells.GRU, 199)
        and at_marks(found, cells.RNN) < 1
        and largest(found, cells.RNN) >= found.plan.shown_length * 0.9
    ),
    "Clipping does nothing against vanishing": lambda found: all(
        run["final"] > 0.8 if run["is_clipped"] else run["final"] < 0.15 for run in found.clipping
    ),
    "Over few steps": lambda found: True,  # a choice, by the models of cells.md
    "Over many steps": lambda found: (
        all(solved(found, "adding", cell)[200] for cell in (cells.GRU, cells.LSTM_LENGTH))
        and not any(solved(found, "adding", cell)[200] for cell in (cells.LSTM, cells.RNN))
    ),
    "Where a short sequence must be kept": lambda found: all(
        (scores(found, "copying", cells.RNN)[length] > max(
            scores(found, "copying", cell)[length] for cell in (cells.GRU, cells.LSTM_LENGTH)
        )) == (length <= 100)
        for length in lengths_run(found, "copying")
    ),
    "Clip the gradient's norm": lambda found: True,  # the claim on clipping
    "A gradient that vanishes in float32": lambda found: True,  # measured in record 73
}  # fmt: skip


@pytest.mark.parametrize("words", CLAIMS)
def test_what_the_page_says_is_what_was_found(words: str) -> None:
    assert words in (DOCS / "why-lstm.md").read_text()
    assert CLAIMS[words](read_findings(DOCS))


def test_everything_that_the_page_lists_is_held_to_the_findings() -> None:
    page = (DOCS / "why-lstm.md").read_text()
    listed = [line[2:] for line in page.splitlines() if line.startswith("- ")]
    labels = [f"{cell.label}:" for cell in TRAINED]
    for line in listed:
        assert line.startswith((*CLAIMS, *labels)), line


def test_everything_of_the_plan_was_run() -> None:
    found = read_findings(DOCS)
    assert found.plan == Plan()
    ran = {(run["task"], run["cell"], run["length"]) for run in found.runs}
    for task, cell, length in itertools.product(TASKS, TRAINED, found.plan.lengths):
        left_out = cell is cells.RNN_TORCH and length > found.plan.longest_torch
        assert ((task, cell.label, length) in ran) != left_out
