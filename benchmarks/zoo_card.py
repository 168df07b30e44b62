"""A zoo model's card as numbers: its measures, its baselines, and which of them go together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cellar_proto.v1.manifest_pb2 import Manifest, Mode
from google.protobuf import json_format

from benchmarks.serving import ZOO

MODES = {
    Mode.ONE_TO_ONE: "one-to-one",
    Mode.ONE_TO_MANY: "one-to-many",
    Mode.MANY_TO_ONE: "many-to-one",
    Mode.MANY_TO_MANY_ALIGNED: "many-to-many, aligned",
    Mode.MANY_TO_MANY_ENCODER_DECODER: "many-to-many, encoder-decoder",
}
_MEASURE = re.compile(r"^\| \*\*(.+?)\*\* \| \*\*(.+?)\*\* \|$", re.MULTILINE)
_BASELINE = re.compile(r"^\| baseline: (.+?) \| ([-\d.]+) \|$", re.MULTILINE)
_INT8 = re.compile(r"^\| measure .* \| float32 \| int8 \|\n\|---\|---\|---\|\n\| .+? \| .+? \| (.+?) \|$", re.MULTILINE)
_IS_LOWER_BETTER = re.compile(r"lower is better|nats|entropy|error|RMSE")


@dataclass(frozen=True)
class Comparison:
    """A measure, and the best of what it is compared with: baselines, and published figures where there are any."""

    measure: tuple[str, float]
    baseline: tuple[str, float] | None
    published: tuple[str, float] | None


@dataclass(frozen=True)
class ZooCard:
    """measures and baselines in the card's order, in `unit`; ms_per_step and int8 as written, "" where they are not."""

    folder: Path
    manifest: Manifest
    unit: str
    measures: dict[str, float]
    baselines: dict[str, float]
    ms_per_step: str
    int8: str

    @property
    def mode(self) -> str:
        return MODES[self.manifest.mode]

    def comparison(self) -> Comparison:
        """The first measure that baselines name as theirs ("move all, squared error" names "squared error of a pixel");
        where none does, the first measure beside all baselines."""
        name, compared = next(iter(self.measures)), self.baselines
        for measure in self.measures:
            theirs = {_without(each, measure): value for each, value in self.baselines.items() if _named(each, measure)}
            if theirs:
                name, compared = measure, theirs
                break
        best = min if _IS_LOWER_BETTER.search(f"{self.unit} {name}") else max
        published = {each: value for each, value in compared.items() if "published" in each}
        rest = {each: value for each, value in compared.items() if each not in published}
        return Comparison((name, self.measures[name]), *(_best(best, each) for each in (rest, published)))


def _best(best: object, figures: dict[str, float]) -> tuple[str, float] | None:
    return best(figures.items(), key=lambda each: each[1]) if figures else None  # type: ignore[operator]


def _named(baseline: str, measure: str) -> list[str]:
    """Parts of a baseline's name that are in the measure's."""
    return [part for part in baseline.split(", ") if part in measure]


def _without(baseline: str, measure: str) -> str:
    named = _named(baseline, measure)
    return ", ".join(part for part in baseline.split(", ") if part not in named)


def cards(zoo: Path = ZOO) -> list[ZooCard]:
    """All of the zoo, by name."""
    return [read_card(path.parent) for path in sorted(zoo.glob("*/*/manifest.json"))]


def read_card(folder: Path) -> ZooCard:
    manifest = json_format.Parse((folder / "manifest.json").read_text("utf-8"), Manifest())
    text = (folder / "CARD.md").read_text("utf-8")
    unit = re.search(r"^\| measure \((.*)\) \| value \|$", text, re.MULTILINE)
    ms, int8 = re.search(r"one step of one row: ([\d.]+) ms", text), _INT8.search(text)
    return ZooCard(
        folder,
        manifest,
        unit[1] if unit else "",
        {name: float(value) for name, value in _MEASURE.findall(text)},
        {name: float(value) for name, value in _BASELINE.findall(text)},
        ms[1] if ms else "",
        int8[1] if int8 else "",
    )
