"""A load on Triton that outlives the server's deaths, and whether its answers have the bits of the batch of one."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tritonclient.grpc as tritonclient
from tritonclient.utils import InferenceServerException

from benchmarks.generator import Generator, Load, Window
from benchmarks.network import WIDTH
from benchmarks.stand import Arm
from benchmarks.triton.server import Triton

TIMEOUT_S = 30.0


class RefusedError(RuntimeError):
    """A request failed, or was not answered in time."""


@dataclass(kw_only=True)
class TritonArm(Arm):
    """Windows that a death of the process ended are measured again, on the process that came after it."""

    reopen: Callable[[], Load]
    num_deaths: int

    def window(
        self, seconds: float, arrivals: np.ndarray | None = None, save: Path | None = None, drain_s: float = 5.0
    ) -> Window:
        server: Triton = self.server  # type: ignore[assignment]
        while True:
            if self.num_deaths != server.num_deaths:
                self.load.close()
                self.load, self.num_deaths = self.reopen(), server.num_deaths
            before = self.num_messages, self.server_cpu_s
            window = super().window(seconds, arrivals, save, drain_s)
            if not server.has_died(window.errors):
                return window
            self.num_messages, self.server_cpu_s = before


def triton_arm(generator: Generator, server: Triton, kind: str, **options: object) -> TritonArm:
    """An arm of the Open Inference Protocol on a server that may die."""

    def reopen() -> Load:
        return generator.open(kind, server.address, **options)

    return TritonArm(load=reopen(), server=server, reopen=reopen, num_deaths=server.num_deaths)  # type: ignore[arg-type]


def answers(address: str, model: str, sequence: np.ndarray, chunk: int, *, sequence_id: int) -> np.ndarray:
    """Emissions of a sequence [length, 64] sent on one stream in chunks. RefusedError where one is."""
    came: queue.SimpleQueue[tuple[tritonclient.InferResult, Exception | None]] = queue.SimpleQueue()
    parts = [sequence[at : at + chunk] for at in range(0, len(sequence), chunk)]
    emissions = []
    with tritonclient.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: came.put((result, error)))
        for at, part in enumerate(parts):
            x = tritonclient.InferInput("x", [1, len(part), WIDTH], "FP32")
            x.set_data_from_numpy(part[None])
            is_last = at == len(parts) - 1
            try:
                client.async_stream_infer(
                    model, [x], sequence_id=sequence_id, sequence_start=not at, sequence_end=is_last
                )
                result, error = came.get(timeout=TIMEOUT_S)
            except (queue.Empty, InferenceServerException) as lost:
                raise RefusedError("the stream ended, or no answer came in time") from lost
            if error:
                raise RefusedError(str(error))
            emissions.append(result.as_numpy("y")[0])
        client.stop_stream()
    return np.concatenate(emissions)
