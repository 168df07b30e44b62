"""chars-ru: the model of `chars` for Russian."""

from __future__ import annotations

from pathlib import Path

from cellar_models import chars
from cellar_models.chars import RUSSIAN, evaluate, train

__all__ = ["build", "evaluate", "train", "write_samples"]


def build(data: Path) -> chars.Chars:
    """A network for the characters of Anna Karenina and of the Pushkin files."""
    return chars.build(RUSSIAN, data)


def write_samples(folder: Path, data: Path) -> None:
    """The validation text's first 2,000 characters."""
    chars.write_samples(RUSSIAN, folder, data)
