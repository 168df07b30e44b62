"""A server process of our own: started on a free port, stopped by its pid, never left behind."""

from __future__ import annotations

import collections
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "models" / "zoo"
_LISTENING = re.compile(r"listening on (\S+:\d+)")


class StartError(RuntimeError):
    """The process ended, or said nothing of listening in time; holds the end of its log."""


@dataclass(frozen=True)
class Served:
    """A running server: its process, and HOST:PORT."""

    process: subprocess.Popen[str]
    address: str
    log: collections.deque[str]

    def terminate(self, timeout_s: float = 20.0) -> int:
        """Asks the process to end and waits for it; its exit status. Kills it after the time-out."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def ends_within(self, timeout_s: float) -> bool:
        """Whether the process has ended, or does in that time."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def is_gone(self) -> bool:
        """No process has the pid any more."""
        if self.process.poll() is None:
            return False
        try:
            os.kill(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def resident_bytes(self) -> int:
        """Resident size of the process (Linux)."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """Seconds of processor time that the process has used so far, all its threads (Linux)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def command_line(models: Path = ZOO, extra: Sequence[str] = ()) -> list[str]:
    """The `cellar-server` beside this interpreter, on a free port of the loopback."""
    program = Path(sys.executable).parent / "cellar-server"
    return [str(program), "--listen", "127.0.0.1:0", "--models", str(models), *extra]


@contextmanager
def started(
    command: Sequence[str],
    *,
    cores: Sequence[int] = (),
    timeout_s: float = 60.0,
    env: Mapping[str, str] | None = None,
    listening: re.Pattern[str] = _LISTENING,
    is_group: bool = False,
) -> Iterator[Served]:
    """Runs a command that says `listening on HOST:PORT` on stderr; pins it to `cores` where some are given.

    env: its environment, where not this one's; listening: another way to say it; is_group: in a group of its own.
    """
    pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    process = subprocess.Popen(
        list(command),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=pin,
        env=env,
        start_new_session=is_group,
    )
    log: collections.deque[str] = collections.deque(maxlen=200)
    found: list[str] = []
    settled = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line.rstrip("\n"))
            match = listening.search(line)
            if match and not found:
                found.append(match[1])
                settled.set()
        settled.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    settled.wait(timeout_s)
    served = Served(process, found[0] if found else "", log)
    try:
        if not found:
            raise StartError("the server did not start:\n" + "\n".join(log))
        yield served
    finally:
        served.terminate()
        reader.join(5)
        if process.stderr is not None:
            process.stderr.close()


@contextmanager
def served(models: Path = ZOO, *, extra: Sequence[str] = (), cores: Sequence[int] = ()) -> Iterator[Served]:
    """A `cellar-server` over a folder of models."""
    with started(command_line(models, extra), cores=cores) as server:
        yield server
