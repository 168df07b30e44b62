"""`cellar-models validate FOLDER`: is this folder an entry that can be served, and does it keep what it promises?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cellar_proto.v1.manifest_pb2 import SAMPLES, Manifest, Mode
from cellar_proto.v1.tensor_pb2 import DataType
from google.protobuf import json_format

from cellar_models.own.drawn import conditions, inputs, start_rows
from cellar_models.own.precisions import check_promise, check_variant
from cellar_models.own.priming import Priming
from cellar_models.own.proof import DTYPES, Step, check_containment, check_round_trip, compare, measure_ms
from cellar_models.verify import VerifyError

# Bytes of a session in the server beside its state row (measured over a million sessions, benchmarks/RESULTS.md).
TABLE_BYTES = 150
# What the check of an entry without a bound of its own is held to.
DEFAULT_TOLERANCE = 1e-5


@dataclass
class Validation:
    """What was found. lines: (proved, refuted or skipped; the check; what it found), in plain words."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return all(verdict != "NO" for verdict, _, _ in self.lines)

    def __str__(self) -> str:
        return "\n".join(f"{verdict:4} {check:22} {text}" for verdict, check, text in self.lines)


def validate(folder: Path) -> Validation:
    """All checks of one entry, <name>/<version>/. A check that cannot be made because an earlier one failed is left
    out; nothing is raised for a bad folder."""
    found = Validation()

    def check(name: str, what: Callable[[], str]) -> bool:
        try:
            found.lines.append(("yes", name, what()))
            return True
        except Exception as error:
            # whatever a folder does wrong is a finding about the folder
            found.lines.append(("NO", name, " ".join(str(error).split())[:300] or type(error).__name__))
            return False

    manifest = Manifest()
    if not check("manifest", lambda: _read(folder, manifest)):
        return found
    if not check("files and hashes", lambda: _hashes(folder, manifest)):
        return found
    check("state parts", lambda: _parts(manifest))
    check("codecs and labels", lambda: _codecs(folder, manifest))
    opened: list[Step] = []

    def open_graph() -> str:
        step = Step.open(folder, manifest.step)
        step.check_signature(manifest)
        opened.append(step)
        return f"{manifest.step.file} has the manifest's tensors, batch and time open"

    if not check("graph", open_graph):
        return found
    step, rng = opened[0], np.random.default_rng(0)
    x = inputs(folder, manifest, rng)
    tolerance = max(manifest.parity.tolerance, DEFAULT_TOLERANCE)
    starts: list[np.ndarray] = []

    def start() -> str:
        starts.append(start_rows(folder, manifest))
        return f"{manifest.start_file or 'zeros'}"

    if not check("start", start):
        return found

    def prime() -> str:
        condition = conditions(manifest, rng)
        priming = Priming.open(folder, manifest)
        text = priming.check(condition, starts[0], tolerance)
        starts[0] = priming.run(condition, starts[0])
        return text

    if manifest.HasField("prime") and not check("prime", prime):
        return found

    def cuts() -> str:
        report = compare(step, x, starts[0], tolerance, is_whole_only=manifest.is_whole_only)
        return check_promise(manifest.parity, report, is_whole_only=manifest.is_whole_only)

    def round_trip() -> str:
        check_round_trip(folder, step, x, starts[0])
        return "goes on to the bit"

    def batch_mates() -> str:
        check_containment(step, x, starts[0])
        return "changes no bit of the other rows"

    check("rows and cuts", cuts)
    if manifest.is_whole_only:
        found.lines.append(("-", "state round trip", "whole sequences only: no state"))
    else:
        check("state round trip", round_trip)
    check("NaN of a batch-mate", batch_mates)
    check("TorchScript", lambda: _torchscript(folder, manifest, step, x, starts[0], tolerance))
    check("size", lambda: _size(folder, manifest))
    check("speed", lambda: _speed(step, x, starts[0]))
    for variant in manifest.variants:
        check_variant(check, folder, manifest, variant, step, x, starts[0])
    return found


def _read(folder: Path, manifest: Manifest) -> str:
    path = folder / "manifest.json"
    if not path.is_file():
        raise VerifyError(f"{path} is missing: an entry is <name>/<version>/ with a manifest.json")
    json_format.Parse(path.read_text("utf-8"), manifest)
    if manifest.format != 1:
        raise VerifyError(f"format {manifest.format}; this version knows 1")
    folder = folder.resolve()
    if (manifest.name, str(manifest.version)) != (folder.parent.name, folder.name):
        raise VerifyError(
            f"it is of {manifest.name}/{manifest.version}, the folder is {folder.parent.name}/{folder.name}"
        )
    if manifest.input.dtype not in DTYPES or not manifest.mode or not manifest.state_size:
        raise VerifyError("it lacks mode, input.dtype or state_size")
    return f"{manifest.name}/{manifest.version}, {Mode.Name(manifest.mode).lower().replace('_', '-')}"


def _hashes(folder: Path, manifest: Manifest) -> str:
    named = [
        manifest.step.file,
        manifest.prime.graph.file,
        manifest.start_file,
        manifest.text.tokenizer_file,
        manifest.prime.text.tokenizer_file,
        *(variant.step_file for variant in manifest.variants),
        manifest.generation.vocabulary_file,
        manifest.torchscript_file,
        manifest.prime_torchscript_file,
    ]
    for name in named:
        if name and name not in manifest.sha256:
            raise VerifyError(f"sha256 has no entry for {name}")
    for name, sha256 in sorted(manifest.sha256.items()):
        if Path(name).name != name or not (folder / name).is_file():
            raise VerifyError(f"{name} is missing, or no plain file name")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
            raise VerifyError(f"{name} is not the file that the manifest describes (sha256)")
    return f"{len(manifest.sha256)} files as the manifest describes them"


def _parts(manifest: Manifest) -> str:
    at, names = 0, set()
    for part in sorted(manifest.parts, key=lambda part: part.offset):
        if part.offset != at or part.name in names:
            raise VerifyError(f"part {part.name!r} does not follow the one before it")
        names.add(part.name)
        at += int(np.prod(part.shape, dtype=np.int64))
    if at != manifest.state_size:
        raise VerifyError(f"they hold {at} numbers; state_size is {manifest.state_size}")
    return f"{len(names)} parts fill {at} numbers"


def _codecs(folder: Path, manifest: Manifest) -> str:
    lines = []
    for what, codec, spec in (
        ("text", manifest.text, manifest.input),
        ("text of the condition", manifest.prime.text, manifest.prime.condition),
    ):
        if codec.tokenizer_file:
            from tokenizers import Tokenizer

            size = Tokenizer.from_file(str(folder / codec.tokenizer_file)).get_vocab_size()
            if spec.vocabulary and size > spec.vocabulary:
                raise VerifyError(f"the tokenizer has {size} ids, the graph takes {spec.vocabulary} ({what})")
            lines.append(f"{what}, {size} ids")
    if manifest.HasField("generation"):
        lines.append(_generation(folder, manifest))
    features = len(manifest.prime.dialogue_act.features)
    if features and [features] != list(manifest.prime.condition.shape):
        raise VerifyError(f"{features} features for a condition of {list(manifest.prime.condition.shape)}")
    if manifest.position_unit == SAMPLES:
        if manifest.input.dtype != DataType.INT16 or len(manifest.input.shape) != 1:
            raise VerifyError(f"positions in samples need int16 frames, not {list(manifest.input.shape)}")
        lines.append(f"PCM, {manifest.input.shape[0]} samples a step")
    for what, names, spec in (
        ("labels", manifest.labels, manifest.output),
        ("output names", manifest.output.names, manifest.output),
        ("input names", manifest.input.names, manifest.input),
    ):
        if names and (not spec.shape or len(names) != spec.shape[-1]):
            raise VerifyError(f"{len(names)} {what} for a shape of {list(spec.shape)}")
        lines += [f"{len(names)} {what}"] if names else []
    return ", ".join(lines) or "none"


def _generation(folder: Path, manifest: Manifest) -> str:
    """What is emitted is fed back: both sides have the same ids."""
    generation = manifest.generation
    texts = json.loads((folder / generation.vocabulary_file).read_text("utf-8")) if generation.vocabulary_file else []
    ids = manifest.output.shape[-1] if manifest.output.shape else 0
    if manifest.input.vocabulary and ids > manifest.input.vocabulary:
        raise VerifyError(f"it emits {ids} ids and takes {manifest.input.vocabulary}")
    if texts and len(texts) < ids:
        raise VerifyError(f"{generation.vocabulary_file} has {len(texts)} texts for {ids} ids")
    for name in ("begin_id", "end_id"):
        if not 0 <= getattr(generation, name) < max(ids, manifest.input.vocabulary):
            raise VerifyError(f"generation.{name} {getattr(generation, name)} is no id of the {ids} emitted")
    return f"generation, {ids} ids"


def _torchscript(
    folder: Path, manifest: Manifest, step: Step, x: np.ndarray, start: np.ndarray, tolerance: float
) -> str:
    if not manifest.torchscript_file:
        return "none in this entry"
    import warnings

    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript works and is said to be on its way out
        script = torch.jit.load(str(folder / manifest.torchscript_file))
        y, _ = script(torch.from_numpy(x[:7]), torch.from_numpy(start[:7]))
    expected, _ = step.run(x[:7], start[:7])
    difference = float(np.abs(y.numpy() - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    # two float32 forms, each within the tolerance of the truth
    if not difference <= 2 * tolerance:
        raise VerifyError(f"{manifest.torchscript_file} differs by {difference:.1e} of the largest output")
    return f"{manifest.torchscript_file} gives the graph's outputs within {difference:.1e} of the largest"


def _size(folder: Path, manifest: Manifest) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    row = 4 * manifest.state_size
    per_session = (
        "no sessions" if manifest.is_whole_only else f"{row} bytes of state a session (and {TABLE_BYTES} of table)"
    )
    return f"{size / 1e6:.1f} MB on disk, {manifest.num_parameters} parameters, {per_session}"


def _speed(step: Step, x: np.ndarray, start: np.ndarray) -> str:
    one, many = (measure_ms(step, x, start, rows) for rows in (1, 64))
    return f"{one:.3f} ms a step of one row, {many:.3f} ms of 64 rows (here, one thread, without the server)"
