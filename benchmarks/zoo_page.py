"""docs/zoo.md: a row for each model of the zoo, from its manifest and its card.

`python -m benchmarks.zoo_page` writes it again after an export.
"""

from __future__ import annotations

import re
from pathlib import Path

from cellar_proto.v1.manifest_pb2 import Manifest, Mode
from google.protobuf import json_format

from benchmarks.serving import ROOT, ZOO

PAGE = ROOT / "docs" / "zoo.md"
_HEAD = """# The zoo

Made from the manifests and cards by `python -m benchmarks.zoo_page`. Each model's card (its name leads there) says what
it was measured on, what was tried, what it does not reach and how to make it again; `make train` makes all of them.
The first measure of each card stands here, beside the baselines; int8 is that measure of the `--precision int8` form.

| model | mode | what it does | measure | baselines | parameters | ms a step | MB | int8 |
|---|---|---|---|---|---|---|---|---|
"""
_TAIL = """
MB: all files of the folder. ms a step: one step of one row in ONNX Runtime on one thread, in the hour of the export, on
a shared machine: compare loosely.

## Licences

| model | data | licence |
|---|---|---|
"""
_MODES = {
    Mode.ONE_TO_ONE: "one-to-one",
    Mode.ONE_TO_MANY: "one-to-many",
    Mode.MANY_TO_ONE: "many-to-one",
    Mode.MANY_TO_MANY_ALIGNED: "many-to-many, aligned",
    Mode.MANY_TO_MANY_ENCODER_DECODER: "many-to-many, encoder-decoder",
}


def page(zoo: Path = ZOO) -> str:
    """The whole text."""
    rows, licences = [], []
    for folder in sorted(path.parent for path in zoo.glob("*/*/manifest.json")):
        manifest = json_format.Parse((folder / "manifest.json").read_text("utf-8"), Manifest())
        card = (folder / "CARD.md").read_text("utf-8")
        link = f"[{manifest.name}](../models/zoo/{manifest.name}/{manifest.version}/CARD.md)"
        megabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
        what = manifest.description.replace("|", "/")
        cells = [link, _MODES[manifest.mode], what, *_measures(card), f"{manifest.num_parameters:,}"]
        rows.append("| " + " | ".join([*cells, _ms(card), f"{megabytes:.1f}", _int8(card)]) + " |")
        licences.append(f"| {manifest.name} | {manifest.data} | {manifest.licence} |")
    return _HEAD + "\n".join(rows) + "\n" + _TAIL + "\n".join(licences) + "\n"


def _number(text: str) -> str:
    return f"{float(text):.4g}"


def _measures(card: str) -> tuple[str, str]:
    """The first measure with its unit, and the baselines."""
    unit = re.search(r"^\| measure \((.*)\) \| value \|$", card, re.MULTILINE)
    first = re.search(r"^\| \*\*(.+?)\*\* \| \*\*(.+?)\*\* \|$", card, re.MULTILINE)
    assert unit
    assert first
    baselines = re.findall(r"^\| baseline: (.+?) \| ([-\d.]+) \|$", card, re.MULTILINE)
    return (
        f"{first[1]} **{_number(first[2])}** ({unit[1]})",
        "; ".join(f"{name} {_number(value)}" for name, value in baselines),
    )


def _ms(card: str) -> str:
    found = re.search(r"one step of one row: ([\d.]+) ms", card)
    return found[1] if found else ""


def _int8(card: str) -> str:
    found = re.search(
        r"^\| measure .* \| float32 \| int8 \|\n\|---\|---\|---\|\n\| .+? \| .+? \| (.+?) \|$", card, re.MULTILINE
    )
    return _number(found[1]) if found else "no: see the card"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
