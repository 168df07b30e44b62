"""Processes that are told to stop when it does not suit them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.serving import started
from tests.fakes.zoo import write_counter


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    write_counter(tmp_path / "zoo")
    return tmp_path / "zoo"


def test_a_process_that_cannot_stop_ends_itself(zoo: Path, tmp_path: Path) -> None:
    """A thread that hangs, as in a dead disk, does not hold the process for longer than it said."""
    script = tmp_path / "hanging.py"
    script.write_text(
        "import sys, time\n"
        "from cellar_server import cli\n"
        "from cellar_server.server import Server\n"
        "class Hanging(Server):\n"
        "    async def drain(self):\n"
        "        time.sleep(600)\n"
        "cli.Server, cli.LAST_S = Hanging, 0.5\n"
        "sys.exit(cli.main())\n"
    )
    command = [sys.executable, str(script), "--listen", "127.0.0.1:0", "--models", str(zoo), "--drain-s", "0.5"]
    with started(command) as server:
        assert server.terminate() == 1
        assert any("ends as it is" in line for line in server.log)


def test_a_word_to_stop_that_comes_before_it_serves_stops_it_too(zoo: Path, tmp_path: Path) -> None:
    script = tmp_path / "early.py"
    script.write_text(
        "import os, signal, sys\n"
        "from cellar_server import cli\n"
        "from cellar_server.server import Server\n"
        "class Early(Server):\n"
        "    async def start(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        await super().start()\n"
        "cli.Server = Early\n"
        "sys.exit(cli.main())\n"
    )
    command = [sys.executable, str(script), "--listen", "127.0.0.1:0", "--models", str(zoo)]
    with started(command) as server:
        assert server.process.wait(20) == 0
