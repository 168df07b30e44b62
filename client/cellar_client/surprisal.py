"""How little each character of a text was expected, as it arrives."""

from __future__ import annotations

import codecs
from typing import Protocol

import numpy as np

from cellar_client.emissions import Emissions
from cellar_client.messages import ModelInfo


class _Session(Protocol):
    def step(self, x: bytes) -> Emissions: ...


class Surprisal:
    """Feeds a text to a session of a model that scores the next character, and says how many nats each one was worth.

    The session starts with what a generation of the model starts with (`begin_id`), so the first character has its
    surprisal too. ValueError for a model without names of its outputs or without generation.
    """

    def __init__(self, session: _Session, model: ModelInfo) -> None:
        if not model.output_names or model.manifest is None or not model.manifest.HasField("generation"):
            raise ValueError(f"model {model.name!r} does not say which characters its outputs stand for")
        self._session = session
        self._place = {name: i for i, name in enumerate(model.output_names)}
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        begin = model.output_names[model.manifest.generation.begin_id]
        self._scores = np.asarray(session.step(begin.encode()))[-1]

    def take(self, piece: str | bytes) -> list[tuple[str, float]]:
        """Characters that are now whole, each with its -log p (nats) given all before it; a character that the model
        has no name for counts as "<unk>", or infinite. A piece may end anywhere. UnicodeDecodeError for bytes that are
        no UTF-8."""
        data = piece.encode() if isinstance(piece, str) else piece
        text = self._decoder.decode(data)
        if not data:
            return []
        scores = np.asarray(self._session.step(data))
        before = np.concatenate([self._scores[None], scores])
        if len(scores):
            self._scores = scores[-1]
        unknown = self._place.get("<unk>")
        places = [self._place.get(character, unknown) for character in text]
        return [
            (character, float("inf") if place is None else -float(before[i, place]))
            for i, (character, place) in enumerate(zip(text, places, strict=True))
        ]
