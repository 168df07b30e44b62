"""What the demo prints: chapters, checks, and a line of each for the table at the end."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

SHADES = " .:-=+*#@"


class CheckError(Exception):
    """A check of the demo did not hold; its text says which."""


class Story:
    """Prints the chapters and keeps a line of each for the table at the end."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.lines: list[tuple[str, str, str]] = []

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{title}", align="left")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            raise CheckError(what)
        self.console.print(f"[green]ok[/green] {what}", highlight=False)

    def note(self, chapter: str, input_: str, result: str) -> None:
        self.lines.append((chapter, input_, result))

    def table(self) -> Table:
        table = Table(title="What was shown", show_lines=False)
        for name in ("chapter", "input", "result"):
            table.add_column(name)
        for line in self.lines:
            table.add_row(*line)
        return table


def drawing(image: np.ndarray) -> list[str]:
    """An 8 x 8 image of greys 0 to 16 as eight lines, two characters a pixel."""
    return ["".join(2 * SHADES[int(v) * (len(SHADES) - 1) // 16] for v in row) for row in image.reshape(8, 8)]


def rmse(guess: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((guess - truth) ** 2)))
