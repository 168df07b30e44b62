"""docs/zoo.md: a row for each model of the zoo, from its manifest and its card; and what was only evaluated.

`python -m benchmarks.zoo_page` writes it again after an export.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.evaluated import sections
from benchmarks.serving import ROOT, ZOO
from benchmarks.zoo_card import cards

PAGE = ROOT / "docs" / "zoo.md"
_HEAD = """# The zoo

Made from the manifests and cards by `python -m benchmarks.zoo_page`. Each model's card (its name leads there) says what
it was measured on, what was tried, what it does not reach and how to make it again; `make train` makes all of them.
int8 is the first measure of the `--precision int8` form.

| model | mode | what it does | measures | baselines | parameters | ms a step | MB | int8 |
|---|---|---|---|---|---|---|---|---|
"""
_TAIL = """
MB: all files of the folder; weights are stored at half precision and computed with in float32. ms a step: one step of
one row in ONNX Runtime on one thread, the fastest of many runs on a shared machine: compare loosely.

## Licences

| model | data | licence |
|---|---|---|
"""


def page(zoo: Path = ZOO, evaluated: Path = ROOT / "docs" / "zoo") -> str:
    """The whole text. evaluated: the folder of the findings of what was only evaluated."""
    rows, licences = [], []
    for card in cards(zoo):
        manifest = card.manifest
        link = f"[{manifest.name}](../models/zoo/{manifest.name}/{manifest.version}/CARD.md)"
        megabytes = sum(path.stat().st_size for path in card.folder.rglob("*") if path.is_file()) / 1e6
        measures = "; ".join(f"{name} **{value:.4g}**" for name, value in card.measures.items()) + f" ({card.unit})"
        baselines = "; ".join(f"{name} {value:.4g}" for name, value in card.baselines.items())
        what = manifest.description.replace("|", "/")
        cells = [link, card.mode, what, measures, baselines, f"{manifest.num_parameters:,}", card.ms_per_step]
        int8 = f"{float(card.int8):.4g}" if card.int8 else "no: see the card"
        rows.append("| " + " | ".join([*cells, f"{megabytes:.1f}", int8]) + " |")
        licences.append(f"| {manifest.name} | {manifest.data} | {manifest.licence} |")
    return _HEAD + "\n".join(rows) + "\n" + _TAIL + "\n".join(licences) + "\n" + sections(evaluated)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
