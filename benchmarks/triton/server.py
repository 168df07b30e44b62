"""Triton's own `tritonserver` out of the wheel nvidia-pytriton, over a repository of the benchmark's network.

    python3.11 -m venv .venv-triton
    .venv-triton/bin/pip install --no-deps nvidia-pytriton==0.7.0
    .venv-triton/bin/pip install numpy==1.26.4 onnxruntime==1.32.0

The wheel holds the server and its Python backend; it does not hold the ONNX Runtime backend.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from benchmarks.network import WIDTH, write_ceiling
from benchmarks.serving import Served, started

MODEL = Path(__file__).parent / "model.py"
MAX_DEATHS = 20
SLOTS = (64, 256)
DELAYS_US = (0, 100, 500)
_STARTED = re.compile(r"Started GRPCInferenceService at (\S+:\d+)")
_IDLE_US = 600_000_000
_CONFIG = """backend: "python"
max_batch_size: {rows}
input [{{ name: "x" data_type: TYPE_FP32 dims: [ -1, {width} ] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [ -1, {width} ] }}]
instance_group [{{ count: 1 kind: KIND_CPU }}]
sequence_batching {{ max_sequence_idle_microseconds: {idle} {strategy} }}
"""


class DeathError(RuntimeError):
    """The server died too often to be measured."""


def batchings(sessions: int) -> list[str]:
    """Names of the repository's models that so many sessions may use: every strategy and queue delay."""
    slots = min(count for count in SLOTS if count >= sessions)
    return [name for name in configs() if name.startswith((f"direct-{slots}-", "oldest-"))]


def configs() -> dict[str, str]:
    """`config.pbtxt` by model: the direct strategy by slots and delay, the oldest strategy by delay."""
    made = {}
    for delay in DELAYS_US:
        oldest = f"oldest {{ max_candidate_sequences: 4096 max_queue_delay_microseconds: {delay} }}"
        made[f"oldest-{delay}"] = _config(max(SLOTS), oldest)
        for slots in SLOTS:
            # waits for all slots where it waits at all
            share = 1.0 if delay else 0.0
            direct = f"direct {{ max_queue_delay_microseconds: {delay} minimum_slot_utilization: {share} }}"
            made[f"direct-{slots}-{delay}"] = _config(slots, direct)
    return made


def _config(rows: int, strategy: str) -> str:
    return _CONFIG.format(rows=rows, width=WIDTH, idle=_IDLE_US, strategy=strategy)


def write_repository(folder: Path) -> None:
    """A model a batching, all with the same network."""
    for name, config in configs().items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(config)
        shutil.copy(MODEL, version / "model.py")
        write_ceiling(version / "bare.onnx")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tree_cpu_s(pid: int) -> float:
    """Processor time of a process and of those that its threads started (Linux)."""
    total = 0.0
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(_tree_cpu_s(int(child)) for child in (task / "children").read_text().split())
    return total


class Triton:
    """The server, started anew where its process dies.

    venv: where the wheel is installed; folder: for the repository and the backend. FileNotFoundError where the wheel is
    not there.
    """

    def __init__(self, venv: Path, folder: Path) -> None:
        site = next((venv.absolute() / "lib").glob("python3.*/site-packages"), venv / "lib")
        self.home = site / "pytriton" / "tritonserver"
        self.program = self.home / "bin" / "tritonserver"
        if not self.program.exists():
            raise FileNotFoundError(f"{self.program}: nvidia-pytriton is not installed in {venv}")
        self.python = site.parent.name.removeprefix("python")
        path = f"{venv.absolute() / 'bin'}:{os.environ.get('PATH', '')}"
        self.environment = {**os.environ, "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"), "PATH": path}
        self.environment.pop("PYTHONPATH", None)
        self.folder = folder
        self.deaths: list[list[str]] = []  # the last lines of each log
        self.shared = f"cellar-bench-{os.getpid()}-"
        self._open = ExitStack()

    def __enter__(self) -> Triton:
        write_repository(self.folder / "repository")
        # the backend looks for the interpreter's stub beside itself
        shutil.copytree(self.home / "backends", self.folder / "backends")
        stub = self.home / "python_backend_stubs" / self.python / "triton_python_backend_stub"
        shutil.copy(stub, self.folder / "backends" / "python")
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def command(self, port: int) -> list[str]:
        return [
            str(self.program),
            f"--model-repository={self.folder / 'repository'}",
            f"--backend-directory={self.folder / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self.shared}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={port}",
            "--allow-http=false",
            "--allow-metrics=false",
        ]

    def _start(self) -> None:
        command = self.command(_free_port())
        self.served: Served = self._open.enter_context(
            started(command, env=self.environment, listening=_STARTED, is_group=True)
        )

    def _stop(self) -> None:
        self.served.terminate()
        # a server that died leaves its interpreters, which keep its log open, and their memory
        with suppress(ProcessLookupError):
            os.killpg(self.served.process.pid, signal.SIGKILL)
        self._open.close()
        for left in Path("/dev/shm").glob(f"{self.shared}*"):
            left.unlink(missing_ok=True)

    @property
    def num_deaths(self) -> int:
        return len(self.deaths)

    @property
    def address(self) -> str:
        return self.served.address

    def cpu_s(self) -> float:
        """Seconds of processor time of the server and of its interpreters (Linux)."""
        return _tree_cpu_s(self.served.process.pid)

    def has_died(self, errors: Mapping[str, int]) -> bool:
        """Whether what failed a window was the end of the process; another one runs then. DeathError after many."""
        if not errors or not self.served.ends_within(5.0):
            return False
        self.deaths.append([*self.served.log][-40:])
        if self.num_deaths > MAX_DEATHS:
            raise DeathError(f"tritonserver died {self.num_deaths} times")
        self._stop()
        self._start()
        return True
