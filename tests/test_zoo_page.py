"""docs/zoo.md is made from the cards and manifests, and has a row for every model."""

import json
import re

from benchmarks import evaluated, zoo_page
from benchmarks.serving import ZOO


def test_the_page_is_up_to_date():
    assert zoo_page.page() == zoo_page.PAGE.read_text("utf-8"), "run `python -m benchmarks.zoo_page`"


def test_every_model_has_a_row_with_a_measure_and_a_baseline():
    rows = re.findall(r"^\| \[([\w-]+)\]\((\S+)\) \| (.+)$", zoo_page.page(), re.MULTILINE)
    assert [name for name, *_ in rows] == sorted(file.parent.parent.name for file in ZOO.glob("*/*/manifest.json"))
    for name, link, rest in rows:
        assert (zoo_page.PAGE.parent / link).resolve().is_file(), name
        _, _, measure, baselines, *_ = rest.split(" | ")
        assert re.search(r"\*\*[-\d.e]+\*\*", measure), name
        assert re.search(r"\d", baselines), name


def test_what_was_only_evaluated_is_told_from_its_findings(tmp_path):
    assert evaluated.sections(tmp_path) == ""
    found = {
        "parameters": 1234,
        "hidden_size": 8,
        "seeds": [1, 2],
        "measures": {"OT": {"LSTM": [[0.1, 0.2], [0.3, 0.4]], "last value": [1, 2], "the day before": [3, 4]}},
        "published": {"OT": [0.5, 0.6]},
    }
    (tmp_path / "etth1.json").write_text(json.dumps(found))
    row = "| OT | **0.200 / 0.300** (0.100 to 0.300) | 1.000 / 2.000 | 3.000 / 4.000 | 0.500 / 0.600 |"
    assert row in evaluated.sections(tmp_path).splitlines()
    scores = {"BLEU": 30.5, "chrF": 50.0}
    found = {
        "parameters": 1234, "hidden_size": 8, "pieces": [4000, 3990], "cpu_hours": 0.25, "published": {"GRU": 20.6},
        "curve": [[1, 60, 3.5, 10.1], [2, 120, 3.0, 20.2]], "test": {"1": scores, "4": {**scores, "BLEU": 31.5}},
    }  # fmt: skip
    (tmp_path / "multi30k.json").write_text(json.dumps(found))
    text = evaluated.sections(tmp_path)
    assert "| 2 | 120 | 3.0 | 20.2 |" in text.splitlines()
    assert "31.5 with 4 beams" in text
