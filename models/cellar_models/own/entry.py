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
    MANY_TO_MANY_ALIGNED,
    MANY_TO_ONE,
    ROWS,
    SAMPLES,
    TEXT_BYTES,
    Manifest,
    StepSpec,
)
from cellar_proto.v1.tensor_pb2 import DataType
from google.protobuf import json_format
from torch import nn

from cellar_models.export import write_manifest
from cellar_models.network import Network
from cellar_models.own.forms import Form
from cellar_models.own.graph import write_onnx, write_torchscript
from cellar_models.own.node import kind_of
from cellar_models.own.proof import STEPS, Step, check_containment, check_round_trip, compare
from cellar_models.own.stepper import Stepper
from cellar_models.own.study import expected_steps, rounding, study
from cellar_models.own.subject import Subject
from cellar_models.own.why import ExportError, Why
from cellar_models.verify import ROWS as ROW_COUNTS
from cellar_models.verify import TOLERANCE, Report, VerifyError

_DTYPES = {
    torch.float32: DataType.FLOAT32,
    torch.int64: DataType.INT64,
    torch.int16: DataType.INT16,
    torch.uint8: DataType.UINT8,
}
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

    ExportError, with a named reason in plain words, and nothing written, where the network cannot be served so.
    """
    check_name(name, version)
    models = Path(folder)
    subject = Subject.of(module, example, state, output, single_step=single_step)
    stepper = study(subject, cells=tuple(cells), whole_only=whole_only, tolerance=max(tolerance, _STRUCTURE))
    stepper.softmax = softmax
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
            _fill(
                manifest, entry, stepper, labels, tokenizer, pcm, input_names, output_names, description, licence, data
            )

        fill(Manifest(), entry)  # says what does not fit before the long part
        reason = write_torchscript(stepper, entry / "model.pt")
        if reason:
            subject.notes.append(f"no model.pt: TorchScript cannot ({reason})")
        write_onnx(stepper, entry / "model.onnx")
        report = _prove(stepper, entry, tolerance)
        manifest = write_manifest(_Described(name, stepper, fill), version, report, entry)
        manifest.parity.tolerance = tolerance
        text = json_format.MessageToJson(manifest, preserving_proto_field_name=True, indent=1)
        (entry / "manifest.json").write_text(text + "\n")
        found = Exported(target, stepper.form, stepper.state_size, tuple(subject.notes), report)
        (entry / "CARD.md").write_text(_card(manifest, found), "utf-8")
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
    manifest.input.CopyFrom(_input(stepper, ()))
    manifest.output.CopyFrom(_output(stepper, ()))
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


def _input(stepper: Stepper, names: Sequence[str]) -> StepSpec:
    subject = stepper.subject
    shape = tuple(subject.example.shape[2:])
    if names and (not shape or shape[-1] != len(names)):
        raise ExportError(Why.LABELS, f"{len(names)} input names for inputs of shape {list(shape)}")
    return StepSpec(dtype=_DTYPES[subject.example.dtype], shape=shape, names=names, vocabulary=subject.vocabulary)


def _output(stepper: Stepper, names: Sequence[str]) -> StepSpec:
    assert stepper.subject.layout is not None
    shape = stepper.subject.layout.step
    if names and (not shape or shape[-1] != len(names)):
        raise ExportError(Why.LABELS, f"{len(names)} names for outputs of shape {list(shape)}")
    return StepSpec(dtype=DataType.FLOAT32, shape=shape, names=names)


def _fill(
    manifest: Manifest,
    entry: Path,
    stepper: Stepper,
    labels: Sequence[str],
    tokenizer: Any,
    pcm: bool,
    input_names: Sequence[str],
    output_names: Sequence[str],
    description: str,
    licence: str,
    data: str,
) -> None:
    subject, layout = stepper.subject, stepper.subject.layout
    assert layout is not None
    is_aligned = layout.time_axis is not None or bool(layout.flat)
    manifest.mode = MANY_TO_MANY_ALIGNED if is_aligned else MANY_TO_ONE
    manifest.description = description or f"{type(subject.module).__name__}, exported from PyTorch."
    manifest.input.CopyFrom(_input(stepper, input_names))
    manifest.output.CopyFrom(_output(stepper, output_names or labels))
    manifest.position_unit = ROWS
    manifest.parts.extend(stepper.state_parts())
    manifest.is_whole_only = stepper.form is Form.WHOLE
    manifest.architecture = _architecture(subject.module)
    manifest.licence, manifest.data = licence, data
    if bool(stepper.start.any()):
        manifest.start_file = "start.f32"
        (entry / "start.f32").write_bytes(stepper.start.numpy().astype("<f4").tobytes())
    if labels:
        _check_labels(stepper, labels)
        manifest.labels.extend(labels)
    if pcm:
        if subject.example.dtype != torch.int16 or subject.example.dim() != 3 or stepper.form is Form.WHOLE:
            raise ExportError(Why.SOUND, f"{list(subject.example.shape)} {subject.example.dtype}: {Why.SOUND.value}")
        manifest.position_unit = SAMPLES
    if tokenizer is not None:
        text = _tokenizer_json(tokenizer, subject)
        (entry / "tokenizer.json").write_text(text, "utf-8")
        manifest.text.tokenizer_file = "tokenizer.json"
        manifest.position_unit = TEXT_BYTES


def _check_labels(stepper: Stepper, labels: Sequence[str]) -> None:
    with torch.no_grad():
        x = stepper.subject.sample(3, 4, 6)
        y, _ = stepper.over(x, stepper.start.repeat(3, 1))
    if not torch.allclose(y.sum(-1), torch.ones(()), atol=1e-3) or bool((y < 0).any()):
        raise ExportError(Why.LABELS, "labels name probabilities, and the output is none: pass softmax=True")


def _tokenizer_json(tokenizer: Any, subject: Subject) -> str:
    """The tokenizer as JSON; ExportError TOKENIZER where text that comes word by word gets other ids."""
    from tokenizers import Tokenizer

    try:
        made = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.from_file(os.fspath(tokenizer))
    except Exception as error:
        raise ExportError(Why.TOKENIZER, f"the tokenizer file cannot be read: {error}") from None
    if subject.example.dtype != torch.int64 or subject.example.dim() != 2:
        raise ExportError(Why.TOKENIZER, "text becomes ids: the network must take int64 [batch, time]")
    if subject.vocabulary and made.get_vocab_size() > subject.vocabulary:
        raise ExportError(
            Why.TOKENIZER, f"the tokenizer has {made.get_vocab_size()} ids, the embedding {subject.vocabulary}"
        )
    known = sorted(word for word in made.get_vocab() if word.isalpha())
    words = [*known[:: max(1, len(known) // 40)][:40], "two", "words,", "unbelievably"]
    whole = made.encode(" ".join(words), add_special_tokens=False).ids
    one_by_one = [i for word in words for i in made.encode(word, add_special_tokens=False).ids]
    if whole != one_by_one:
        raise ExportError(
            Why.TOKENIZER,
            "text arrives word by word, and this tokenizer gives a text other ids than its words one by one "
            "(a byte-level one needs add_prefix_space=True)",
        )
    return made.to_str()


def _architecture(module: nn.Module) -> str:
    found = []
    for each in module.modules():
        kind = kind_of(each)
        if kind and isinstance(each, nn.RNNBase):
            ways = ", bidirectional" if each.bidirectional else ""
            found.append(
                f"{kind.upper()}, {each.num_layers} layer{'s' * (each.num_layers > 1)} of {each.hidden_size}{ways}"
            )
        elif kind:
            found.append(f"{type(each).__name__} of {each.hidden_size}")
    return "; ".join(dict.fromkeys(found)) or type(module).__name__


_FORMS = {
    Form.FOLDED: "one ONNX node for each recurrent layer",
    Form.LOOP: "an ONNX Scan over the steps (its cells are not plain layers)",
    Form.FED: "an ONNX Scan over the steps (what its cells gave is used elsewhere too)",
    Form.GIVEN: "an ONNX Scan over the steps (the network hands its state over)",
    Form.WHOLE: "whole sequences at once",
}


def _card(manifest: Manifest, found: Exported) -> str:
    parts = "\n".join(f"| {part.name} | {list(part.shape)} | {part.offset} |" for part in manifest.parts)
    notes = "\n".join(f"- {note[0].upper()}{note[1:]}." for note in found.notes)
    cuts, bits = ("", "") if manifest.is_whole_only else (" in cuts of 1 to 16 steps", " and every cut")
    return f"""# {manifest.name}
{manifest.description}

- Network: {manifest.architecture}; {manifest.num_parameters} parameters, {manifest.state_size} numbers of state.
- Data: {manifest.data or "not stated"}. Licence: {manifest.licence or "not stated"}.
- Run as: {_FORMS[found.form]}. ONNX opset {manifest.opset}.
- Difference from the network in PyTorch over whole sequences: {found.report.max_relative_error:.1e} of the largest
  output at most (bound {manifest.parity.tolerance:g}), at 1 to 256 rows{cuts}.
- The same bits at every number of rows{bits}: {found.report.is_bit_identical}.
{notes}

| state | shape | offset |
|---|---|---|
{parts}

Quality was not measured here: put the metric, its data and a baseline below.

Check this folder: `cellar-models validate FOLDER/{manifest.name}/{manifest.version}`
"""
