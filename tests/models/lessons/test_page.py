"""`cellar-models study gradients`: the page and its pictures come from the findings, and say what they show."""

from __future__ import annotations

import dataclasses
import re
from operator import itemgetter
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models.cli import main
from cellar_models.lessons import learner as cells
from cellar_models.lessons.page import DRAWN, read_findings, render, write_page
from cellar_models.lessons.plots import PLOTS
from cellar_models.lessons.study import QUICK, Findings, study

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


def test_what_the_page_says_is_what_was_found() -> None:
    """The sentences around its tables, which no run writes."""
    found = read_findings(DOCS)
    at_100 = {label: norms["state"][99] for label, norms in found.starts.items()}
    for cell in (cells.RNN_TORCH, cells.LSTM_TORCH, cells.GRU):
        assert at_100[cell.label] < 1e-10
    for cell in (cells.RNN, cells.LSTM, cells.LSTM_LENGTH):
        assert at_100[cell.label] > 5e-3
    assert at_100[cells.RNN_GAIN.label] > 100
    assert at_100[cells.LSTM_LENGTH.label] == max(v for k, v in at_100.items() if k != cells.RNN_GAIN.label)
    adding = {(run["cell"], run["length"]): run for run in found.runs if run["task"] == "adding"}
    for (label, _), run in adding.items():
        if label in (cells.RNN.label, cells.RNN_TORCH.label):
            assert not run["solved_after"]
            assert run["final"] > 0.15
        if label == cells.GRU.label:
            assert run["solved_after"]
    for run in found.clipping:
        assert run["final"] > 0.8 if run["is_clipped"] else run["final"] < 0.15
