"""The three schedulers that Cellar is measured beside: a run a request, padded batches, padded batches by length.

Each is written as one would who knows what he does: nothing waits while the engine is idle, a run takes all that is
waiting up to its rows, equal lengths are not padded, and what its caller gave up is not run.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime

from benchmarks.network import HIDDEN, PARTS, WIDTH

BUCKETS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)


@dataclass(eq=False)
class Job:
    """A sequence, or a chunk of a session: x float32 [length, 64], its state [4, 256]; `outputs` once it has run."""

    x: np.ndarray
    state: np.ndarray
    is_dropped: Callable[[], bool] = lambda: False
    outputs: np.ndarray = field(default_factory=lambda: np.empty((0, WIDTH), np.float32))
    error: Exception | None = None


class Policy(Protocol):
    """What waits, and what runs next."""

    def add(self, job: Job) -> None: ...

    def take(self) -> list[Job]:
        """The jobs of one run, at least one where any is waiting."""

    def __len__(self) -> int: ...


class Waiting:
    """First come, first served, up to `max_rows` in a run: with 1 the batch of one, with more padded batching."""

    def __init__(self, max_rows: int = 1) -> None:
        self.max_rows = max_rows
        self.jobs: deque[Job] = deque()

    def add(self, job: Job) -> None:
        self.jobs.append(job)

    def take(self) -> list[Job]:
        return [self.jobs.popleft() for _ in range(min(self.max_rows, len(self.jobs)))]

    def __len__(self) -> int:
        return len(self.jobs)


class Buckets:
    """Padded batches of similar lengths: the bucket whose first job waits longest, up to `max_rows` of it."""

    def __init__(self, max_rows: int, bounds: Sequence[int] = BUCKETS) -> None:
        self.max_rows, self.bounds = max_rows, bounds
        self.buckets: list[deque[tuple[int, Job]]] = [deque() for _ in range(len(bounds) + 1)]
        self.num_added = 0

    def add(self, job: Job) -> None:
        at = int(np.searchsorted(self.bounds, len(job.x)))
        self.buckets[at].append((self.num_added, job))
        self.num_added += 1

    def take(self) -> list[Job]:
        waiting = [bucket for bucket in self.buckets if bucket]
        if not waiting:
            return []
        oldest = min(waiting, key=lambda bucket: bucket[0][0])
        return [oldest.popleft()[1] for _ in range(min(self.max_rows, len(oldest)))]

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)


def policy(name: str, max_rows: int) -> Policy:
    """By its name: one, padded or buckets."""
    return {"one": lambda: Waiting(1), "padded": lambda: Waiting(max_rows), "buckets": lambda: Buckets(max_rows)}[
        name
    ]()


class Network:
    """The bare network, and the same with `sequence_lens` for rows of different lengths."""

    def __init__(self, bare: Path, padded: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.bare, self.padded = (
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for path in (bare, padded)
        )

    def run(self, jobs: Sequence[Job]) -> None:
        """One run of all jobs; gives them their outputs and next states."""
        lengths = np.array([len(job.x) for job in jobs], np.int32)
        xt = np.zeros((lengths.max(), len(jobs), WIDTH), np.float32)
        for row, job in enumerate(jobs):
            xt[: len(job.x), row] = job.x
        states = np.stack([job.state for job in jobs], axis=1)
        feeds = {"xt": xt, **{part: states[i : i + 1] for i, part in enumerate(PARTS)}}
        if lengths.min() == lengths.max():
            yt, *nexts = self.bare.run(None, feeds)
        else:
            yt, *nexts = self.padded.run(None, {**feeds, "lengths": lengths})
        states = np.concatenate(nexts)
        for row, job in enumerate(jobs):
            job.outputs, job.state = yt[: len(job.x), row], states[:, row]


def start_state() -> np.ndarray:
    """h and c of both layers before the first step, float32 [4, 256]."""
    return np.zeros((len(PARTS), HIDDEN), np.float32)


class Worker:
    """A thread that runs what the policy takes and hands the finished jobs over, a list a run."""

    def __init__(
        self, run: Callable[[Sequence[Job]], None], chosen: Policy, deliver: Callable[[list[Job]], None]
    ) -> None:
        self.run, self.policy, self.deliver = run, chosen, deliver
        self._arriving: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._arriving.put(job)

    def stop(self) -> None:
        """Ends after the run at hand."""
        self._arriving.put(None)
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        return len(self.policy) + self._arriving.qsize()

    def _work(self) -> None:
        while True:
            while not len(self.policy) or not self._arriving.empty():
                job = self._arriving.get()
                if job is None:
                    return
                self.policy.add(job)
            jobs = [job for job in self.policy.take() if not job.is_dropped()]
            if not jobs:
                continue
            try:
                self.run(jobs)
            except Exception as error:
                for job in jobs:
                    job.error = error
            self.deliver(jobs)
