"""The surprisal of a text does not depend on how it arrives."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from cellar_client.emissions import Emissions
from cellar_client.messages import model_info
from cellar_client.surprisal import Surprisal
from cellar_proto.v1.manifest_pb2 import Generation, Manifest
from cellar_proto.v1.models_pb2 import Model
from hypothesis import given
from hypothesis import strategies as st

NAMES = ["<unk>", "\n", "a", "é", "日"]


class Cycle:
    """A session of a model that gives half to the next name in order, and an eighth to each of the others."""

    def __init__(self) -> None:
        self.tail = b""

    def step(self, x: bytes) -> Emissions:
        data = self.tail + x
        text = data.decode(errors="ignore")
        self.tail = data[len(text.encode()) :]
        places = [NAMES.index(c) if c in NAMES else 0 for c in text]
        scores = np.full((len(places), len(NAMES)), math.log(1 / 8), np.float32)
        scores[np.arange(len(places)), [(p + 1) % len(NAMES) for p in places]] = math.log(1 / 2)
        return Emissions(scores)


def model(names: list[str]) -> object:
    manifest = Manifest(name="chars", generation=Generation(begin_id=1))
    manifest.output.names.extend(names)
    return model_info(Model(manifest=manifest))


@given(st.text(st.sampled_from("\naé日x"), max_size=12), st.lists(st.integers(0, 36), max_size=6))
def test_pieces_may_end_anywhere(text: str, cuts: list[int]) -> None:
    data = text.encode()
    reader = Surprisal(Cycle(), model(NAMES))  # type: ignore[arg-type]
    places = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    found = [each for low, high in pairwise(places) for each in reader.take(data[low:high])]
    assert "".join(character for character, _ in found) == text
    ids = [1, *(NAMES.index(c) if c in NAMES else 0 for c in text)]
    wanted = [math.log(2) if b == (a + 1) % len(NAMES) else math.log(8) for a, b in pairwise(ids)]
    np.testing.assert_allclose([nats for _, nats in found], wanted, rtol=1e-6)


def test_a_model_without_names_is_refused() -> None:
    with pytest.raises(ValueError, match="'chars' does not say"):
        Surprisal(Cycle(), model([]))  # type: ignore[arg-type]
