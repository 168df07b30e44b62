"""docs/your-model.md is executed: trained, exported, validated, served and stepped through as it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving import ROOT, served

pytest.importorskip("torch", reason="the models extra is not installed")

PAGE = (ROOT / "docs" / "your-model.md").read_text()
TRAINING, CALLING = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_training_script_to_a_streaming_session(tmp_path):
    said = run(TRAINING, tmp_path)
    assert "wrote models/pump/1: 64 numbers of state" in said
    program = Path(sys.executable).parent / "cellar-models"
    command = re.search(r"^cellar-models (validate .*)$", PAGE, re.MULTILINE)[1].split()
    proved = subprocess.run([program, *command], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert proved.returncode == 0, proved.stdout
    assert "256 bytes of state a session" in proved.stdout
    with served(tmp_path / "models") as server:
        said = run(CALLING.replace("127.0.0.1:50051", server.address), tmp_path)
    assert said == "after 50 readings; the hidden state: ['lstm.0.c', 'lstm.0.h', 'lstm.1.c', 'lstm.1.h']\n"


def test_every_reason_is_listed():
    from cellar_models.own.why import Why

    table = "\n".join(f"| `{why.name}` | {why.value} |" for why in Why)
    listed = re.search(r"<!-- reasons -->\n(.*?)<!-- /reasons -->", PAGE, re.DOTALL)[1]
    assert listed == f"| why | |\n|---|---|\n{table}\n"


def test_its_links_lead_to_files():
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (ROOT / "docs" / link).is_file(), link
