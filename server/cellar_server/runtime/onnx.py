"""ONNX Runtime, on the CPU or CUDA provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from cellar_proto.v1.manifest_pb2 import Graph, Manifest
from cellar_proto.v1.tensor_pb2 import DataType

from cellar_server.runtime.base import StartupError
from cellar_server.runtime.graph_file import check_graph

DTYPES: dict[int, np.dtype[Any]] = {
    DataType.FLOAT32: np.dtype(np.float32),
    DataType.INT64: np.dtype(np.int64),
    DataType.INT16: np.dtype(np.int16),
    DataType.UINT8: np.dtype(np.uint8),
}
_ONNX_TYPES = {
    DataType.FLOAT32: "tensor(float)",
    DataType.INT64: "tensor(int64)",
    DataType.INT16: "tensor(int16)",
    DataType.UINT8: "tensor(uint8)",
}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class GraphMismatch(ValueError):
    """A graph is not what its manifest says."""


def check_provider(provider: str) -> None:
    """StartupError unless the installed ONNX Runtime has the provider."""
    available = onnxruntime.get_available_providers()
    if _PROVIDERS[provider] not in available:
        raise StartupError(
            f"provider {provider!r} is not in the installed ONNX Runtime (it has {', '.join(available)}); "
            + ("install onnxruntime-gpu" if provider == "cuda" else "install onnxruntime")
        )


class OnnxRuntime:
    """A model's step and prime graphs. See Runtime.

    intra_op: threads of one run; spin: whether they burn their core while they wait. A row that comes alone is run
    beside a copy of itself where the manifest says that a lone row's bits differ (nn.RNN's product kernel does);
    twin_steps counts those copies, twin_bytes what was copied for them.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, *, provider: str = "cpu", intra_op: int = 1, spin: bool = False
    ) -> None:
        check_provider(provider)
        self.state_size = manifest.state_size
        self.start = _start(manifest, folder)
        self.input_dtype = DTYPES[manifest.input.dtype]
        self.input_shape = tuple(manifest.input.shape)
        self.output_shape = tuple(manifest.output.shape)
        self.twin_steps = 0
        self.twin_bytes = 0
        self._min_rows = max(1, manifest.parity.min_rows)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = intra_op
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        # a device first, the CPU for what the device lacks
        providers = [_PROVIDERS["cuda"], _PROVIDERS["cpu"]] if provider == "cuda" else [_PROVIDERS["cpu"]]
        self._step = self._open(manifest.step, folder, options, providers)
        _check(self._step, manifest.step, 2, _ONNX_TYPES[manifest.input.dtype], manifest)
        self._step_names = [manifest.step.output, manifest.step.state_output]
        self._x, self._state = manifest.step.input, manifest.step.state_input
        self._prime: onnxruntime.InferenceSession | None = None
        if manifest.HasField("prime"):
            graph = manifest.prime.graph
            is_step = graph.file == manifest.step.file
            self._prime = self._step if is_step else self._open(graph, folder, options, providers)
            self._prime_graph, self._is_prime_recurrent = graph, manifest.prime.is_recurrent
            axes = 2 if self._is_prime_recurrent else 1
            _check(self._prime, graph, axes, _ONNX_TYPES[manifest.prime.condition.dtype], manifest)

    @staticmethod
    def _open(
        graph: Graph, folder: Path, options: onnxruntime.SessionOptions, providers: list[str]
    ) -> onnxruntime.InferenceSession:
        # the bytes that were checked are those that are opened
        data = (folder / graph.file).read_bytes()
        check_graph(data)
        return onnxruntime.InferenceSession(data, options, providers=providers)

    def step(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = len(x)
        if rows < self._min_rows:
            self.twin_steps += (self._min_rows - rows) * x.shape[1]
            x, state = self._twins(x, state)
            y, following = self._step.run(self._step_names, {self._x: x, self._state: state})
            return y[:rows], following[:rows]
        y, following = self._step.run(self._step_names, {self._x: x, self._state: state})
        return y, following

    def _twins(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows beside copies of themselves, as many as are needed."""
        places = np.arange(self._min_rows) % len(x)
        x, state = x[places], state[places]
        self.twin_bytes += x.nbytes + state.nbytes
        return x, state

    def prime(self, condition: np.ndarray, state: np.ndarray) -> np.ndarray:
        if self._prime is None:
            raise GraphMismatch("the model has no prime graph")
        graph, rows = self._prime_graph, len(condition)
        if self._is_prime_recurrent and rows < self._min_rows:
            self.twin_steps += (self._min_rows - rows) * condition.shape[1]
            condition, state = self._twins(condition, state)
        following = self._prime.run([graph.state_output], {graph.input: condition, graph.state_input: state})[0]
        return following[:rows]


def _start(manifest: Manifest, folder: Path) -> np.ndarray:
    if not manifest.start_file:
        return np.zeros(manifest.state_size, np.float32)
    path = folder / manifest.start_file
    if path.stat().st_size != 4 * manifest.state_size:
        count = path.stat().st_size / 4
        raise GraphMismatch(f"{manifest.start_file} holds {count:g} numbers; the state row has {manifest.state_size}")
    row = np.fromfile(path, "<f4")
    if not np.isfinite(row).all():
        raise GraphMismatch(f"{manifest.start_file} holds NaN or an infinity")
    return row


def _check(session: onnxruntime.InferenceSession, graph: Graph, open_axes: int, dtype: str, manifest: Manifest) -> None:
    """GraphMismatch unless names, dtypes and open axes are what the manifest says."""
    inputs = {place.name: place for place in session.get_inputs()}
    outputs = {place.name: place for place in session.get_outputs()}
    wanted = [(inputs, graph.input, dtype), (inputs, graph.state_input, "tensor(float)")]
    wanted += [(outputs, graph.output, "tensor(float)")] if graph.output else []
    wanted += [(outputs, graph.state_output, "tensor(float)")]
    for places, name, wanted_dtype in wanted:
        if name not in places:
            raise GraphMismatch(f"{graph.file} has no tensor {name!r}; it has {', '.join(sorted(places))}")
        place = places[name]
        if place.type != wanted_dtype:
            raise GraphMismatch(f"{name!r} of {graph.file} is {place.type}; the manifest says {wanted_dtype}")
        axes = 1 if name in (graph.state_input, graph.state_output) else open_axes
        for axis, size in enumerate(place.shape[:axes]):
            if isinstance(size, int):
                raise GraphMismatch(f"axis {axis} of {name!r} in {graph.file} is fixed at {size}; it must be open")
    said = [(inputs[graph.input], manifest.input if graph is manifest.step else manifest.prime.condition)]
    said += [(outputs[graph.output], manifest.output)] if graph.output else []
    for place, spec in said:
        fixed = place.shape[len(place.shape) - len(spec.shape) :]
        if len(place.shape) < len(spec.shape) or any(
            isinstance(size, int) and size != wanted for size, wanted in zip(fixed, spec.shape, strict=True)
        ):
            what = f"{place.name} is {place.shape} in {graph.file}"
            raise GraphMismatch(f"{what}; the manifest says {list(spec.shape)} a step")
    size = inputs[graph.state_input].shape[1]
    if isinstance(size, int) and size != manifest.state_size:
        raise GraphMismatch(f"the state of {graph.file} has {size} numbers; the manifest says {manifest.state_size}")
    if len(inputs) != 2:
        raise GraphMismatch(f"{graph.file} has {len(inputs)} inputs; a graph takes two")
