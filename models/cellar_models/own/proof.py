"""A step graph held against itself, and against the network that it was made from: cuts, rows, NaN, time, size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from cellar_proto.v1.manifest_pb2 import Graph, Manifest
from cellar_proto.v1.tensor_pb2 import DataType

from cellar_models.verify import CUTS, ROWS, Report, VerifyError, cut_sizes, fastest_ms, open_session

DTYPES = {DataType.FLOAT32: np.float32, DataType.INT64: np.int64, DataType.INT16: np.int16, DataType.UINT8: np.uint8}
ONNX_TYPES = {
    DataType.FLOAT32: "tensor(float)",
    DataType.INT64: "tensor(int64)",
    DataType.INT16: "tensor(int16)",
    DataType.UINT8: "tensor(uint8)",
}
STEPS = max(CUTS)


@dataclass
class Step:
    """An opened step graph: run(x [batch, time, ...], state float32 [batch, S]) -> (y, next state)."""

    session: onnxruntime.InferenceSession
    graph: Graph

    @classmethod
    def open(cls, folder: Path, graph: Graph) -> Step:
        return cls(open_session(folder / graph.file), graph)

    def run(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        graph = self.graph
        y, following = self.session.run(
            [graph.output, graph.state_output], {graph.input: x, graph.state_input: np.ascontiguousarray(state)}
        )
        return y, following

    def in_cuts(self, x: np.ndarray, state: np.ndarray, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The same in several runs."""
        outputs, at = [], 0
        for size in sizes:
            y, state = self.run(x[:, at : at + size], state)
            outputs.append(y)
            at += size
        return np.concatenate(outputs, axis=1), state

    def check_signature(self, manifest: Manifest) -> None:
        """VerifyError unless names, dtypes, open axes and sizes are the manifest's."""
        graph = self.graph
        if len(self.session.get_inputs()) != 2:
            raise VerifyError(f"{graph.file} takes {len(self.session.get_inputs())} inputs; a step takes two")
        for name, dtype, num_open, rest in (
            (graph.input, ONNX_TYPES[manifest.input.dtype], 2, list(manifest.input.shape)),
            (graph.state_input, "tensor(float)", 1, [manifest.state_size]),
            (graph.output, "tensor(float)", 2, list(manifest.output.shape)),
            (graph.state_output, "tensor(float)", 1, [manifest.state_size]),
        ):
            check_open(find_place(self.session, graph.file, name), dtype, num_open, rest)


def find_place(session: onnxruntime.InferenceSession, file: str, name: str) -> onnxruntime.NodeArg:
    """A graph's input or output; VerifyError where it has no tensor of that name."""
    places = {place.name: place for place in [*session.get_inputs(), *session.get_outputs()]}
    if name not in places:
        raise VerifyError(f"{file} has no tensor {name!r}; it has {', '.join(sorted(places))}")
    return places[name]


def check_open(place: onnxruntime.NodeArg, dtype: str, num_open: int, rest: list[int]) -> None:
    """VerifyError unless a tensor has this dtype, its first `num_open` axes are open and the others are `rest`."""
    if place.type != dtype:
        raise VerifyError(f"{place.name!r} is {place.type}; the manifest says {dtype}")
    for axis, size in enumerate(place.shape[:num_open]):
        if isinstance(size, int):
            raise VerifyError(f"axis {axis} of {place.name!r} is fixed at {size}; it must be open")
    for size, said in zip(place.shape[num_open:], rest, strict=False):
        if isinstance(size, int) and size != said:
            raise VerifyError(f"{place.name!r} has shape {place.shape}; the manifest says {rest} a step")


def compare(
    step: Step,
    x: np.ndarray,
    start: np.ndarray,
    tolerance: float,
    expected: np.ndarray | None = None,
    *,
    is_whole_only: bool = False,
    source: str = "the network in PyTorch",
) -> Report:
    """Runs x [256, 16, ...] from start rows [256, S] at 1, 2, 7, 64 and 256 rows, whole and cut; VerifyError where
    outputs differ by more than `tolerance` of the largest one, from each other or from what is expected of the first
    rows."""
    report = Report()
    rng = np.random.default_rng(0)
    whole, whole_state = step.run(x, start)
    if whole.shape[:2] != x.shape[:2]:
        raise VerifyError(f"for inputs {list(x.shape)} the output is {list(whole.shape)}: not one for every step")
    if not np.isfinite(whole).all():
        raise VerifyError("inputs that are finite give outputs that are not")

    def note(form: str, found: np.ndarray, wanted: np.ndarray) -> None:
        difference = float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))
        report.differences[form] = max(report.differences.get(form, 0.0), difference)
        if not difference <= tolerance:
            raise VerifyError(f"{form}: outputs differ by {difference:.2e} of the largest (bound {tolerance:g})")

    if expected is not None:
        note(source, whole[: len(expected)], expected)
    differing_rows, differing_steps = {0}, {0}
    for rows in ROWS:
        y, state = step.run(x[:rows], start[:rows])
        note(f"{rows} rows beside {max(ROWS)}", y, whole[:rows])
        note("state, by rows", state, whole_state[:rows])
        if not np.array_equal(y, whole[:rows]):
            differing_rows.add(rows)
        for cut in () if is_whole_only else (*CUTS, 0):
            sizes = cut_sizes(STEPS, cut, rng)
            found, state = step.in_cuts(x[:rows], start[:rows], sizes)
            note(f"cuts of {cut} steps" if cut else "random cuts", found, whole[:rows])
            note("state, by cuts", state, whole_state[:rows])
            if not np.array_equal(found, whole[:rows]):
                (differing_rows if rows in differing_rows else differing_steps).add(
                    rows if rows in differing_rows else 1
                )
    report.conclude(differing_rows, differing_steps)
    return report


def check_containment(step: Step, x: np.ndarray, start: np.ndarray) -> None:
    """VerifyError where a row's output changes when its batch-mate's input or state becomes NaN, infinite or far too
    large: a number that a scale taken over the batch would follow."""
    x, start = x[:7], start[:7]
    y, state = step.run(x, start)
    others = np.arange(7) != 3
    for value in (np.nan, np.inf, np.float32(1e30)):
        bad_start = start.copy()
        bad_start[3] = value
        bad_x = x.copy()
        if x.dtype.kind == "f":
            bad_x[3] = value
        for what, given in (("input", (bad_x, start)), ("state", (x, bad_start))):
            found, following = step.run(*given)
            if not (np.array_equal(found[others], y[others]) and np.array_equal(following[others], state[others])):
                raise VerifyError(f"a batch-mate whose {what} is {value} changes the other rows' outputs")


def check_round_trip(folder: Path, step: Step, x: np.ndarray, start: np.ndarray) -> None:
    """VerifyError where a state written as bytes and taken up by a newly opened graph does not go on the same way."""
    half = STEPS // 2
    _, state = step.run(x[:7, :half], start[:7])
    kept = np.frombuffer(state.astype("<f4").tobytes(), "<f4").reshape(state.shape)
    again = Step.open(folder, step.graph)
    if not np.array_equal(again.run(x[:7, half:], kept)[0], step.run(x[:7, half:], state)[0]):
        raise VerifyError("a state that was written and read again goes on otherwise")


def measure_ms(step: Step, x: np.ndarray, start: np.ndarray, rows: int) -> float:
    """Milliseconds of one step of so many rows, the fastest of many runs."""
    return fastest_ms(lambda: step.run(x[:rows, :1], start[:rows]))
