"""`cellar_models.export`: a user's own network into a models folder."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cellar_proto.v1.manifest_pb2 import (
    Manifest,
)
from google.protobuf import json_format
from torch import nn

from cellar_models.export import write_manifest
from cellar_models.halves import pack_file, round_weights
from cellar_models.network import Network
from cellar_models.own.card import card
from cellar_models.own.filling import fill_manifest, input_spec, output_spec
from cellar_models.own.forms import Form
from cellar_models.own.graph import write_onnx, write_torchscript
from cellar_models.own.handed import copied
from cellar_models.own.proof import STEPS, Step, check_containment, check_round_trip, compare
from cellar_models.own.stepper import Stepper
from cellar_models.own.study import expected_steps, moved_from, rounding, study
from cellar_models.own.subject import Subject
from cellar_models.own.why import ExportError, Why
from cellar_models.verify import ROWS as ROW_COUNTS
from cellar_models.verify import TOLERANCE, Report, VerifyError

# Step by step against the whole sequence, before there is a graph: what no rounding explains.
_STRUCTURE = 1e-3


@dataclass(frozen=True)
class Exported:
    """A written entry. folder: <models>/<name>/<version>; notes: what to know about it, in plain words; report: how
    far its forms are apart."""

    folder: Path
    form: Form
    state_size: int
    notes: tuple[str, ...]
    report: Report

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        is_whole = self.form is Form.WHOLE
        how = "it equals the network" if is_whole else "step by step it equals the network over whole sequences"
        same = "the same bits" if self.report.is_bit_identical else "equal within that, not to the bit,"
        lines = [
            f"wrote {self.folder}: {'no state' if is_whole else f'{self.state_size} numbers of state'}",
            f"{how} within {self.report.max_relative_error:.1e} of the largest output; {same} however batched"
            + ("" if is_whole else " and cut"),
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


class _Described(Network):
    """What `write_manifest` asks of a network, answered by a user's own."""

    def __init__(self, name: str, stepper: Stepper, fill: Any) -> None:
        super().__init__()
        self.name, self.state_size, self._fill = name, stepper.state_size, fill
        self.module = stepper.module

    def describe(self, manifest: Manifest, folder: Path) -> None:
        self._fill(manifest, folder)


def export(
    module: nn.Module,
    folder: str | os.PathLike[str],
    *,
    name: str,
    example: Any,
    version: int = 0,
    state: Any = None,
    output: int | str | None = None,
    cells: Sequence[type[nn.Module]] = (),
    single_step: bool = False,
    whole_only: bool = False,
    softmax: bool = False,
    labels: Sequence[str] = (),
    tokenizer: Any = None,
    pcm: bool = False,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    description: str = "",
    licence: str = "",
    data: str = "",
    tolerance: float = 0.0,
    half_weights: bool = False,
) -> Exported:
    """Writes `folder`/<name>/<version>/ with model.onnx, model.pt (where TorchScript can), manifest.json and CARD.md.

    module: a trained network with nn.RNN, nn.LSTM, nn.GRU or *Cell layers anywhere in it; it is not changed.
    example: an input as it takes them, [batch, time, ...] (or (input, lengths) where it packs sequences).
    version: 0 takes the next free number; an existing one is written anew.
    state: for a network with forward(x, state) -> (y, state): what it starts from, tensors nested as it takes them.
    output: which output is emitted, by place or key, where it returns several.
    cells: classes of the user's own that are called once a step with (x, hidden...) and return the next hidden state.
    single_step: the network is one step, forward(x [batch, ...], state) -> (y, state); example then [batch, ...].
    whole_only: no sessions, each sequence is run at once (bidirectional networks are exported so by themselves).
    softmax: put a softmax over the last axis after the output; labels: names of the classes then.
    tokenizer: a `tokenizers.Tokenizer`, or its file: callers send text, cut at white space.
    pcm: an int16 input [batch, time, k] is sound: callers send samples in pieces of any size, a step is k of them.
    tolerance: largest difference from the network in PyTorch, of the largest output; 0: 1e-5, or eight times what
    float32 itself moves the network's outputs against float64, where that is more.
    half_weights: matrices of weights are rounded to float16's numbers and stored so, in half the room; the entry
    computes with them in float32, and is held to the network that has them.

    ExportError, with a named reason in plain words, and nothing written, where the network cannot be served so.
    """
    check_name(name, version)
    models = Path(folder)
    subject = Subject.of(module, example, state, output, single_step=single_step)
    given = copied(subject.module) if half_weights else subject.module
    if half_weights:
        round_weights(subject.module)
    stepper = study(subject, cells=tuple(cells), whole_only=whole_only, tolerance=max(tolerance, _STRUCTURE))
    stepper.softmax = softmax
    if half_weights:
        moved = moved_from(given, subject, subject.sample(max(ROW_COUNTS), STEPS, 4))
        subject.notes.append(f"weights rounded to half precision move its outputs by {moved:.1e} of the largest")
    if not tolerance:
        noise = rounding(subject, subject.sample(max(ROW_COUNTS), STEPS, 4))
        tolerance = min(max(TOLERANCE, 8 * noise), _STRUCTURE)
        if tolerance > TOLERANCE:
            subject.notes.append(f"rounding in float32 alone moves its outputs by {noise:.1e} of the largest")
    version = version or next_version(models / name)
    target = models / name / str(version)
    with tempfile.TemporaryDirectory() as made:
        entry = Path(made) / "entry"
        entry.mkdir()

        def fill(manifest: Manifest, entry: Path) -> None:
            fill_manifest(
                manifest, entry, stepper, labels, tokenizer, pcm, input_names, output_names, description, licence, data
            )

        fill(Manifest(), entry)  # says what does not fit before the long part
        reason = write_torchscript(stepper, entry / "model.pt")
        if reason:
            subject.notes.append(f"no model.pt: TorchScript cannot ({reason})")
        write_onnx(stepper, entry / "model.onnx")
        if half_weights:
            pack_file(entry / "model.onnx")
        report = _prove(stepper, entry, tolerance)
        manifest = write_manifest(_Described(name, stepper, fill), version, report, entry)
        manifest.parity.tolerance = tolerance
        text = json_format.MessageToJson(manifest, preserving_proto_field_name=True, indent=1)
        (entry / "manifest.json").write_text(text + "\n")
        found = Exported(target, stepper.form, stepper.state_size, tuple(subject.notes), report)
        (entry / "CARD.md").write_text(card(manifest, found.form, found.notes, found.report), "utf-8")
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(entry, target)
    return found


def check_name(name: str, version: int) -> None:
    """ExportError NAME."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or version < 0:
        raise ExportError(Why.NAME, f"{name!r}, version {version}: {Why.NAME.value}")


def next_version(folder: Path) -> int:
    """The number after the last of a model's versions."""
    taken = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    return max(taken, default=0) + 1


def _prove(stepper: Stepper, entry: Path, tolerance: float) -> Report:
    """The graph against the network and itself; ExportError PARITY or MIXES_ROWS."""
    manifest = Manifest()
    manifest.step.file = "model.onnx"
    manifest.step.input, manifest.step.state_input = "x", "state"
    manifest.step.output, manifest.step.state_output = "y", "next_state"
    manifest.state_size = stepper.state_size
    manifest.input.CopyFrom(input_spec(stepper, ()))
    manifest.output.CopyFrom(output_spec(stepper, ()))
    rows = max(ROW_COUNTS)
    x = stepper.subject.sample(rows, STEPS, 4)
    start = np.tile(stepper.start.numpy(), (rows, 1))
    with torch.no_grad():
        if stepper.form is Form.WHOLE:
            expected = stepper(x, torch.from_numpy(start))[0]
        else:
            expected = expected_steps(stepper.subject, x).float()
            expected = torch.softmax(expected, -1) if stepper.softmax else expected
    try:
        step = Step.open(entry, manifest.step)
        step.check_signature(manifest)
        is_whole = stepper.form is Form.WHOLE
        report = compare(step, x.numpy(), start, tolerance, expected.numpy(), is_whole_only=is_whole)
        if is_whole:
            for steps in (1, 5, 11):
                part = x[:5, :steps]
                wanted = stepper(part, torch.from_numpy(start[:5]))[0].detach().numpy()
                _same(step.run(part.numpy(), start[:5])[0], wanted, tolerance)
        else:
            check_round_trip(entry, step, x.numpy(), start)
        check_containment(step, x.numpy(), start)
    except VerifyError as error:
        raise ExportError(Why.PARITY, f"as an ONNX graph: {error}") from error
    except Exception as error:
        # ONNX Runtime's own words for a graph that does not run at another size
        text = " ".join(str(error).split())[:300]
        raise ExportError(Why.EXPORTER, f"the graph does not run at sizes other than the example's: {text}") from error
    return report


def _same(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    if not np.abs(found - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-12):
        raise VerifyError("outputs differ at another length")
