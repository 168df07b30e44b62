"""The page of results, and the numbers behind it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ratios import Ratio
from benchmarks.serving import ROOT

PACKAGES = ["cellar-serving", "grpcio", "onnxruntime", "numpy", "protobuf", "uvloop"]
HEAD = ["measured", "arm", "figure", "beside it", "ratio: median (quartiles)", "aim"]
NOTES = "The last run"
HOW = (
    "LSTM, 2 layers of 256, 64 inputs and outputs, float32, random weights, where no other model is named. The "
    "windows of the arms of a row alternate (AB, BA, ...) in one run with everything kept open; a ratio is that of "
    "neighbouring windows. Every server is a process of its own, not pinned; ONNX Runtime has one thread in all arms; "
    "the load generator (C++, one thread) shares the cores. Latency counts from the scheduled send time where arrivals "
    "are scheduled, else from the send. The raw arm, c(rows, steps), uses plain h and c inputs with outputs "
    "preallocated through IOBinding, in this process. Each section names its processor and its code. "
    "What the rows mean: [README.md](README.md)."
)


@dataclass(frozen=True)
class Line:
    """One row of the page. `at_least` or `at_most`: the aim of its ratio; none where there is no aim."""

    measured: str
    arm: str
    figure: str
    beside: str = ""
    ratio: Ratio | float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the median reaches the aim; None where there is none."""
        if self.ratio is None or (self.at_least is None and self.at_most is None):
            return None
        value = self.ratio.median if isinstance(self.ratio, Ratio) else self.ratio
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def cells(self) -> list[str]:
        aim = f">= {self.at_least:g}" if self.at_least is not None else ""
        aim = f"<= {self.at_most:g}" if self.at_most is not None else aim
        if self.is_met is not None:
            aim += ": reached" if self.is_met else ": **missed**"
        ratio = "" if self.ratio is None else str(self.ratio) if isinstance(self.ratio, Ratio) else f"{self.ratio:.2f}"
        return [self.measured, self.arm, self.figure, self.beside, ratio, aim]


def _revision() -> str:
    """Where something else than the page differs from the revision, it says so."""
    told = subprocess.run(["git", "describe", "--always"], cwd=ROOT, capture_output=True, text=True)
    changed = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/RESULTS.md"]
    mark = "-dirty" if subprocess.run(changed, cwd=ROOT, capture_output=True, text=True).stdout else ""
    return f", revision {told.stdout.strip()}{mark}" if told.returncode == 0 else ""


def _generator() -> str:
    told = subprocess.run(["pkg-config", "--modversion", "grpc++"], capture_output=True, text=True)
    return f"load generator on libgrpc++ {told.stdout.strip()}" if told.returncode == 0 else "no load generator"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def machine() -> str:
    """Processor, cores and versions, in one line."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    python = platform.python_version()
    return f"{_processor()}; {platform.system()}; Python {python}; {versions}; {_generator()}{_revision()}"


def page(sections: Mapping[str, Sequence[Line]], notes: Sequence[str]) -> str:
    """Where, how, and a table a section, each with its processor and revision: `updated` keeps sections of before."""
    text = ["# Results", "", machine(), "", HOW, ""]
    origin = f"*{_processor()}{_revision()}.*"
    for title, lines in sections.items():
        text += [
            f"## {title}",
            "",
            origin,
            "",
            "| " + " | ".join(HEAD) + " |",
            "| " + " | ".join(["---"] * len(HEAD)) + " |",
        ]
        text += ["| " + " | ".join(line.cells()) + " |" for line in lines] + [""]
    return "\n".join([*text, f"## {NOTES}", "", *[f"- {note}" for note in notes], ""])


def updated(old: str, new: str) -> str:
    """The new page, and the old one's sections where the new one has none of their title."""
    (_, theirs), (head, ours) = _sections(old), _sections(new)
    notes = ours.pop(NOTES, "")
    theirs.pop(NOTES, "")
    return "".join([head, *{**theirs, **ours}.values(), notes])


def _sections(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first section, and each section by its title."""
    head, *parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return head, {part.splitlines()[0].removeprefix("## "): part for part in parts}


def write_json(path: Path, records: Mapping[str, Any]) -> None:
    """Every window of every arm, as measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **records}, indent=1, default=lambda value: value.__dict__))
