"""What the README says runs, and its numbers are the cards' numbers."""

import os
import re
import subprocess
import sys

import pytest

from benchmarks.serving import ROOT, served
from benchmarks.zoo_table import replaced, table

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_code():
    assert BLOCKS


# what each block prints
SAID = (
    r"(positive|negative)\nafter 24 hours, the next one: \d+ ug/m3",
    r"peur \?\n.*\?\n[\s\S]+\n\['DET', 'NOUN', 'VERB'\]\nseven\n",
)


@pytest.mark.parametrize(("block", "said"), list(zip(BLOCKS, SAID, strict=True)), ids=["first", "zoo"])
def test_code_runs_against_a_real_server(block, said):
    with served() as server:
        code = block.replace("127.0.0.1:50051", server.address)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout), done.stdout


def test_the_zoo_table_is_the_cards():
    assert replaced(README, table()) == README, "run `python -m benchmarks.zoo_table`"


def test_links_lead_to_files():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert os.path.exists(ROOT / link), link


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
