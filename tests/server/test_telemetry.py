"""What ONNX Runtime may write down about those who use it: nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving import ZOO

# a graph is loaded, as it is by then that events are written
PROGRAM = """
import os, sys
__import__(sys.argv[1])
import onnxruntime
onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
for handle in os.listdir("/proc/self/fd"):
    if os.path.exists(f"/proc/self/fd/{handle}"):
        print(os.readlink(f"/proc/self/fd/{handle}"))
"""


@pytest.mark.parametrize("package", ["cellar_server", "cellar_models"])
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are read from /proc")
def test_no_file_of_its_own(package: str, tmp_path: Path) -> None:
    graph = next((ZOO / "digits" / "1").glob("*.onnx"))
    unset = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, package, graph],
        env={**unset, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert str(tmp_path) not in done.stdout
    assert "telemetry" not in done.stderr
    assert not list(tmp_path.iterdir())
