"""tagger-whole: the tagger that reads a whole sentence in both directions; never cut, so it has no sessions."""

from __future__ import annotations

from pathlib import Path

from cellar_models import tagger
from cellar_models.tagger import Tagger, evaluate, train, write_samples

__all__ = ["build", "evaluate", "train", "write_samples"]


def build(data: Path) -> Tagger:
    return tagger.build(data, is_whole_only=True)
