"""ONNX Runtime alone: the bare network in this process, outputs preallocated, one thread."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.network import HIDDEN, PARTS, WIDTH


class Ceiling:
    """Runs of the bare network through IOBinding."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def binding(self, x: np.ndarray) -> onnxruntime.IOBinding:
        """Inputs x float32 [time, batch, 64] and zero states, outputs preallocated."""
        time_, batch = x.shape[:2]
        bound = self.session.io_binding()
        bound.bind_cpu_input("xt", x)
        for part in PARTS:
            bound.bind_cpu_input(part, np.zeros((1, batch, HIDDEN), np.float32))
        shapes = {"yt": (time_, batch, WIDTH), **{f"next_{p}": (1, batch, HIDDEN) for p in PARTS}}
        for name, shape in shapes.items():
            bound.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(np.empty(shape, np.float32)))
        return bound

    def steps_per_s(self, rows: int, window_s: float, steps: int = 1) -> float:
        """Runs of so many rows and steps, over and over."""
        bound = self.binding(np.random.default_rng(0).standard_normal((steps, rows, WIDTH)).astype(np.float32))
        started, runs = time.perf_counter(), 0
        while time.perf_counter() - started < window_s:
            self.session.run_with_iobinding(bound)
            runs += 1
        return runs * rows * steps / (time.perf_counter() - started)

    def alone(self, sequence: np.ndarray) -> np.ndarray:
        """Emissions of a sequence [length, 64] in a run of its own: the batch of one, bit by bit."""
        states = {part: np.zeros((1, 1, HIDDEN), np.float32) for part in PARTS}
        return self.session.run(["yt"], {"xt": np.ascontiguousarray(sequence[:, None]), **states})[0][:, 0]

    def rows_per_s(self, sequences: list[np.ndarray]) -> float:
        """Sequences [length, 64] grouped by length, 256 a run; sequences a second, gathering included."""
        started = time.perf_counter()
        by_length: dict[int, list[np.ndarray]] = {}
        for sequence in sequences:
            by_length.setdefault(len(sequence), []).append(sequence)
        for group in by_length.values():
            for at in range(0, len(group), 256):
                self.session.run_with_iobinding(self.binding(np.stack(group[at : at + 256], axis=1)))
        return len(sequences) / (time.perf_counter() - started)
