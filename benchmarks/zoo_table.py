"""The README's zoo table, made from the cards (`python -m benchmarks.zoo_table` rewrites it)."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from benchmarks.serving import ROOT, ZOO

MODES = {
    "ONE_TO_ONE": "one-to-one",
    "ONE_TO_MANY": "one-to-many",
    "MANY_TO_ONE": "many-to-one",
    "MANY_TO_MANY_ALIGNED": "many-to-many",
    "MANY_TO_MANY_ENCODER_DECODER": "many-to-many, encoder-decoder",
}
_METRIC = re.compile(r"^\| \*\*(.+?)\*\* \| \*\*(.+?)\*\* \|$", re.MULTILINE)
_BASELINE = re.compile(r"^\| baseline: (.+?) \| (.+?) \|$", re.MULTILINE)


def table(zoo: Path = ZOO) -> str:
    """One row a model: mode, network, the card's metric and its baselines."""
    lines = ["| model | mode | network | on held-out data | baselines | beats its naive baseline |"]
    lines.append("|---|---|---|---|---|---|")
    for path in sorted(zoo.glob("*/*/manifest.json")):
        manifest, card = json.loads(path.read_text()), (path.parent / "CARD.md").read_text()
        metrics = ", ".join(f"{name} {float(value):.4g}" for name, value in _METRIC.findall(card))
        baselines = ", ".join(f"{name} {float(value):.4g}" for name, value in _BASELINE.findall(card))
        mode, beats = MODES[manifest["mode"]], "yes" if "It beats its naive baseline" in card else "no"
        lines.append(
            f"| {manifest['name']} | {mode} | {manifest['architecture']} | {metrics} | {baselines} | {beats} |"
        )
    return "\n".join(lines)


def replaced(readme: str, made: str) -> str:
    """The README with the table between its marks."""
    head, rest = readme.split("<!-- zoo -->")
    return f"{head}<!-- zoo -->\n{made}\n<!-- /zoo -->{rest.split('<!-- /zoo -->')[1]}"


def main() -> int:
    path = ROOT / "README.md"
    path.write_text(replaced(path.read_text(), table()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
