"""Token ids to text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


class Vocabulary:
    """Texts of a generating model's tokens by id."""

    def __init__(self, file: Path, separator: str) -> None:
        words = json.loads(file.read_text("utf-8"))
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{file.name} is not a list of strings")
        self.words: list[str] = words
        self.separator = separator

    def text(self, ids: Sequence[int], values: dict[str, str], is_first: bool) -> bytes:
        """What these tokens add to the text, UTF-8; placeholders give way to their values."""
        words = [values.get(word, word) for word in (self.words[id] for id in ids)]
        return (("" if is_first else self.separator) + self.separator.join(words)).encode()
