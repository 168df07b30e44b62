"""An imported ONNX file proved against itself as it was, and written as an entry."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from cellar_proto.v1.manifest_pb2 import MANY_TO_MANY_ALIGNED, ROWS, Graph, Manifest, StepSpec
from cellar_proto.v1.tensor_pb2 import DataType
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from cellar_models.export import write_manifest
from cellar_models.own.contract import Contract, rewrite
from cellar_models.own.entry import check_name, next_version
from cellar_models.own.proof import DTYPES, STEPS, Step, check_containment, check_round_trip, compare
from cellar_models.own.source import Proposal, Source, sizes_of
from cellar_models.own.why import ExportError, Why
from cellar_models.verify import ROWS as ROW_COUNTS
from cellar_models.verify import TOLERANCE, Report, VerifyError, open_session

# Rows of the source itself, run as it was, that the rewritten graph is held to.
_TRUE_ROWS = 3


@dataclass(frozen=True)
class Imported:
    """A written entry, and how far it is from the file that it came from."""

    folder: Path
    state_size: int
    report: Report
    is_scan: bool

    def __str__(self) -> str:
        how = "its steps run one by one (Scan)" if self.is_scan else "the graph as it was, its axes opened"
        same = "the same bits" if self.report.is_bit_identical else "equal within that, not to the bit,"
        return (
            f"wrote {self.folder}: {self.state_size} numbers of state; {how}\n"
            f"equal to the file within {self.report.max_relative_error:.1e} of the largest output; {same} however "
            "batched and cut"
        )


class _Described:
    """What `write_manifest` asks of a network."""

    has_prime = False

    def __init__(
        self, name: str, contract: Contract, output: tuple[int, ...], description: str, vocabulary: int
    ) -> None:
        self.name, self.contract, self.output = name, contract, output
        self.state_size = sum(int(np.prod(part.shape)) for part in contract.parts)
        self.description, self.vocabulary = description, vocabulary

    def parameters(self) -> Iterator[Tensor]:
        for weight in self.contract.model.graph.initializer:
            if weight.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
                yield torch.from_numpy(numpy_helper.to_array(weight).copy())

    def describe(self, manifest: Manifest, folder: Path) -> None:
        manifest.mode = MANY_TO_MANY_ALIGNED
        manifest.description = self.description
        manifest.input.CopyFrom(
            StepSpec(dtype=self.contract.dtype, shape=self.contract.input_shape, vocabulary=self.vocabulary)
        )
        manifest.output.CopyFrom(StepSpec(dtype=DataType.FLOAT32, shape=self.output))
        manifest.position_unit = ROWS
        manifest.parts.extend(self.contract.parts)
        manifest.architecture = "ONNX graph" + (", run step by step" if self.contract.is_scan else "")


def import_onnx(
    file: Path,
    folder: Path,
    *,
    name: str,
    pairs: Mapping[str, str],
    x: str = "",
    output: str = "",
    axes: Sequence[str] = (),
    state_axes: Mapping[str, int] | None = None,
    constants: Mapping[str, float] | None = None,
    vocabulary: int = 0,
    version: int = 0,
    confirm: Callable[[list[str]], bool] = lambda guesses: False,
) -> Imported:
    """Rewrites an ONNX file to the cell contract and writes `folder`/<name>/<version>/; the zero row is its start.

    pairs: state input to the output that is its next value. x: the sequence input; output: what is emitted; axes: of x,
    ("batch", "time"), ("time", "batch") or, for a graph of one step, ("batch",); state_axes: each state's batch axis;
    constants: other inputs, set once and for all; vocabulary: ids that an integer input takes.
    confirm: asked about everything that was guessed; where it says no, nothing is written.
    ExportError with a named reason.
    """
    check_name(name, version)
    source = Source.read(file, constants or {})
    x, proposal = source.propose(pairs, x, axes, state_axes or {})
    if proposal.guesses and not confirm(proposal.guesses):
        raise ExportError(
            proposal.why,
            "not said, and only guessed: "
            + "; ".join(proposal.guesses)
            + ". Say it so, or otherwise, or accept it with --accept-proposed",
        )
    rest = [each for each in source.outputs if each not in proposal.pairs.values()]
    y = output or (rest[0] if len(rest) == 1 else "")
    if y not in source.outputs:
        raise ExportError(
            Why.SEVERAL_OUTPUTS, f"--output: the outputs beside the states are {', '.join(rest) or 'none'}; name one"
        )
    refusals = []
    for is_scan in (False, True):
        with tempfile.TemporaryDirectory() as made:
            entry = Path(made) / "entry"
            entry.mkdir()
            try:
                contract = rewrite(source, x, y, proposal, is_scan=is_scan)
                shape, report = _prove(source, x, y, proposal, contract, entry, vocabulary)
            except (ExportError, VerifyError) as error:
                refusals.append(str(error))
                continue
            except Exception as error:
                # ONNX's and ONNX Runtime's own words for a graph that does not hold together
                refusals.append(" ".join(str(error).split())[:300])
                continue
            described = _Described(name, contract, shape, f"Imported from {file.name}.", vocabulary)
            target = folder / name / str(version or next_version(folder / name))
            manifest = write_manifest(described, int(target.name), report, entry)  # type: ignore[arg-type]
            (entry / "CARD.md").write_text(_card(manifest, report, proposal), "utf-8")
            if target.exists():
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(entry, target)
            return Imported(target, described.state_size, report, is_scan)
    raise ExportError(Why.FIXED, f"as one graph: {refusals[0]}; step by step: {refusals[1]}")


def _prove(
    source: Source, x: str, y: str, proposal: Proposal, contract: Contract, entry: Path, vocabulary: int
) -> tuple[tuple[int, ...], Report]:
    """Shape of one emission, and what was found; VerifyError, or ONNX Runtime's own error."""
    onnx.checker.check_model(contract.model)
    path = entry / "model.onnx"
    path.write_bytes(contract.model.SerializeToString())
    rng, rows = np.random.default_rng(0), max(ROW_COUNTS)
    state_size = sum(int(np.prod(part.shape)) for part in contract.parts)
    dtype = DTYPES[contract.dtype]
    lead = (rows, STEPS, *contract.input_shape)
    if dtype is np.float32:
        values = rng.standard_normal(lead).astype(np.float32)
    else:
        values = rng.integers(0, vocabulary or 2, lead).astype(dtype)
    graph = Graph(file="model.onnx", input="x", state_input="state", output="y", state_output="next_state")
    step = Step.open(entry, graph)
    start = np.zeros((rows, state_size), np.float32)
    found, _ = step.run(values, start)
    if found.shape[:2] != (rows, STEPS):
        raise VerifyError(f"for inputs {list(lead)} it gives {list(found.shape)}: not an output for every step")
    shape = tuple(found.shape[2:])
    manifest = Manifest(state_size=state_size)
    manifest.input.CopyFrom(StepSpec(dtype=contract.dtype, shape=contract.input_shape))
    manifest.output.CopyFrom(StepSpec(dtype=DataType.FLOAT32, shape=shape))
    step.check_signature(manifest)
    truth = _as_it_was(source, x, y, proposal, values[:_TRUE_ROWS], shape)
    report = compare(step, values, start, TOLERANCE, truth, source="the file as it was")
    check_round_trip(entry, step, values, start)
    check_containment(step, values, start)
    return shape, report


def _as_it_was(
    source: Source, x: str, y: str, proposal: Proposal, values: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """What the file itself gives, one row after the other, in runs of the length that it was made for (one step where
    that is open): [rows, time, ...]."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "model.onnx"
        path.write_bytes(source.model.SerializeToString())
        session = open_session(path)
    places = {place.name: place for place in source.inputs.values()}
    sizes = sizes_of(places[x])
    has_time = len(proposal.axes) == 2
    fixed = sizes[proposal.axes.index("time")] if has_time else 1
    length = fixed if isinstance(fixed, int) and fixed > 0 else 1
    batch = sizes[proposal.axes.index("batch")]
    rows = batch if isinstance(batch, int) and batch > 0 else 1
    if STEPS % length:
        raise VerifyError(f"its time axis is fixed at {length}: its own outputs cannot be had for comparison")
    names = list(proposal.pairs)
    made_rows = []
    for row in range(len(values)):
        states = {}
        for name in names:
            own = [int(size) if isinstance(size, int) else rows for size in sizes_of(places[name])]
            own[proposal.state_axes[name]] = rows
            states[name] = np.zeros(own, helper.tensor_dtype_to_np_dtype(places[name].type.tensor_type.elem_type))
        outputs = []
        for t in range(0, STEPS, length):
            part = np.repeat(values[row : row + 1, t : t + length], rows, 0)
            given = part if has_time else part[:, 0]
            given = given.swapaxes(0, 1) if proposal.axes == ("time", "batch") else given
            own_type = helper.tensor_dtype_to_np_dtype(places[x].type.tensor_type.elem_type)
            found = session.run([y, *proposal.pairs.values()], {x: given.astype(own_type), **states})
            states = dict(zip(names, found[1:], strict=True))
            one = (
                found[0].swapaxes(0, 1)
                if proposal.axes == ("time", "batch") and found[0].ndim >= 2 + len(shape)
                else found[0]
            )
            outputs.append(one[0].astype(np.float32).reshape(length, *shape))
        made_rows.append(np.concatenate(outputs))
    return np.stack(made_rows)


def _card(manifest: Manifest, report: Report, proposal: Proposal) -> str:
    parts = "\n".join(f"| {part.name} | {list(part.shape)} | {part.offset} |" for part in manifest.parts)
    pairs = ", ".join(f"{given} to {following}" for given, following in proposal.pairs.items())
    return f"""# {manifest.name}
{manifest.description}

- Network: {manifest.architecture}; {manifest.num_parameters} parameters, {manifest.state_size} numbers of state.
- States: {pairs}. A session starts from zeros.
- Difference from the file as it was: {report.max_relative_error:.1e} of the largest output at most (bound
  {manifest.parity.tolerance:g}), at 1 to 256 rows in cuts of 1 to 16 steps.
- The same bits at every number of rows and every cut: {report.is_bit_identical}.

| state | shape | offset |
|---|---|---|
{parts}

Quality was not measured here: put the metric, its data and a baseline below.
"""
