"""docs/zoo.md is made from the cards and manifests, and has a row for every model."""

import re

from benchmarks import zoo_page
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
