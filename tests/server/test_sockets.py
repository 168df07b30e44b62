"""Which of gRPC's ways to its sockets a server takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# what the variable is when grpc is imported, and what processes that are started later inherit
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import cellar_server, os; print(os.getenv('GRPC_EXPERIMENTS'))"


@pytest.mark.parametrize(("given", "said"), [("", ["-event_engine_listener", "None"]), ("another", ["another"])])
def test_is_told_when_grpc_is_imported_and_not_passed_on(tmp_path: Path, given: str, said: list[str]) -> None:
    (tmp_path / "grpc.py").write_text("import os; print(os.environ['GRPC_EXPERIMENTS'])")
    others = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    environment = {**others, "GRPC_EXPERIMENTS": given} if given else others
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.split(), done.stderr, done.returncode) == (said, "", 0)
