"""What Triton's Python backend runs: the bare network in ONNX Runtime, states kept by correlation id.

Copied into the model repository, beside `bare.onnx`; it knows nothing of this project. One run of the network a call,
however many requests the sequence batcher hands over: they have one shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

HIDDEN, PARTS, MAX_SEQUENCES = 256, ["h0", "c0", "h1", "c1"], 4096


class TritonPythonModel:
    """Its name and methods are those that the backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"]) / args["model_version"] / "bare.onnx"
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.states = np.zeros((len(PARTS), 1, MAX_SEQUENCES, HIDDEN), np.float32)
        self.rows: dict[int, int] = {}
        self.free = list(range(MAX_SEQUENCES))

    def execute(self, requests: list[Any]) -> list[Any]:
        # the direct strategy fills slots that have no request with one of correlation id 0
        live = [request for request in requests if request.correlation_id()]
        answers = iter(self.run(live) if live else [])
        nothing = np.zeros((1, 1, 64), np.float32)
        return [
            triton.InferenceResponse([triton.Tensor("y", next(answers) if request.correlation_id() else nothing)])
            for request in requests
        ]

    def run(self, requests: list[Any]) -> np.ndarray:
        """Emissions float32 [request, 1, time, 64]; the states go on, or end with their sequence."""
        rows = [self.row(request) for request in requests]
        x = np.concatenate([triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests])
        feeds = {"xt": np.ascontiguousarray(x.swapaxes(0, 1)), **dict(zip(PARTS, self.states[:, :, rows], strict=True))}
        yt, *nexts = self.session.run(None, feeds)
        self.states[:, :, rows] = nexts
        for request in requests:
            if request.flags() & triton.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END:
                self.free.append(self.rows.pop(request.correlation_id()))
        return np.ascontiguousarray(yt.swapaxes(0, 1))[:, None]

    def row(self, request: Any) -> int:
        """Where a sequence's state lies; zeros at its start."""
        sequence = request.correlation_id()
        if request.flags() & triton.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
            if sequence not in self.rows:
                self.rows[sequence] = self.free.pop()
            self.states[:, :, self.rows[sequence]] = 0
        return self.rows[sequence]
