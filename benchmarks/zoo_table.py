"""The README's zoo table, made from the cards (`python -m benchmarks.zoo_table` rewrites it)."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.serving import ROOT, ZOO
from benchmarks.zoo_card import cards


def table(zoo: Path = ZOO) -> str:
    """One row a model: mode, a measure on held-out data, the best baseline, the best published figure."""
    lines = ["| model | mode | on held-out data | best baseline | published |", "|---|---|---|---|---|"]
    for card in cards(zoo):
        found = card.comparison()
        others = [
            "" if each is None else f"{each[1]:.4g} ({each[0].replace(', published', '')})"
            for each in (found.baseline, found.published)
        ]
        link = f"[{card.manifest.name}](models/zoo/{card.manifest.name}/{card.manifest.version}/CARD.md)"
        measure = f"{found.measure[0]} **{found.measure[1]:.4g}**"
        lines.append("| " + " | ".join([link, card.mode, measure, *others]).rstrip() + " |")
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
