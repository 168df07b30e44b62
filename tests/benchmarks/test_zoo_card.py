"""Which measure of a card stands beside which baseline."""

from pathlib import Path

import pytest
from cellar_proto.v1.manifest_pb2 import Manifest

from benchmarks.zoo_card import Comparison, ZooCard, read_card

CARD = """# pump
It pumps.

- ONNX opset 18; one step of one row: 0.012 ms (ONNX Runtime, one thread).

| measure (share of 10 rows) | value |
|---|---|
| **accuracy** | **0.9000** |
| **macro-F1** | **0.8000** |
| rows | 10.0000 |
| baseline: chance, accuracy | 0.5000 |
| baseline: chance, macro-F1 | 0.3000 |

It beats its naive baseline.

## int8

| measure (share of 10 rows) | float32 | int8 |
|---|---|---|
| accuracy | 0.9000 | 0.8900 |
"""


def card(unit: str, measures: dict[str, float], baselines: dict[str, float]) -> ZooCard:
    return ZooCard(Path(), Manifest(), unit, measures, baselines, "", "")


def test_a_card_is_read(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "pump", "mode": "ONE_TO_ONE"}')
    (tmp_path / "CARD.md").write_text(CARD)
    read = read_card(tmp_path)
    assert (read.mode, read.unit, read.ms_per_step, read.int8) == ("one-to-one", "share of 10 rows", "0.012", "0.8900")
    assert read.measures == {"accuracy": 0.9, "macro-F1": 0.8}
    assert read.baselines == {"chance, accuracy": 0.5, "chance, macro-F1": 0.3}
    assert read.comparison() == Comparison(("accuracy", 0.9), ("chance", 0.5), None)


@pytest.mark.parametrize(
    ("unit", "measures", "baselines", "expected"),
    [
        ("share", {"test accuracy": 0.9}, {"mean": 0.7, "logistic": 0.8}, (0.9, "logistic", None)),
        ("nats", {"nats a character": 1.4}, {"5-gram": 1.6, "A, published": 1.3}, (1.4, "5-gram", "A, published")),
        ("m", {"RMSE": 2.0}, {"last value": 3.0, "mean": 9.0}, (2.0, "last value", None)),
        # the first measure has nothing to stand beside
        (
            "shares; nats",
            {"valid": 0.9, "test nats a character": 1.0},
            {"nats a character, 5-grams": 1.5, "by chance": 0.2},
            (1.0, "5-grams", None),
        ),
        ("share", {"accuracy": 0.9}, {}, (0.9, None, None)),
    ],
)
def test_a_measure_stands_beside_the_best_of_its_baselines(unit, measures, baselines, expected):
    found = card(unit, measures, baselines).comparison()
    names = [each and each[0] for each in (found.baseline, found.published)]
    assert (found.measure[1], *names) == expected
