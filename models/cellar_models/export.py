"""From a trained network to a zoo folder: TorchScript, ONNX, manifest and card, or nothing where `verify` fails."""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from cellar_proto.v1.manifest_pb2 import Manifest
from google.protobuf import json_format
from torch import Tensor, nn

from cellar_models.halves import pack
from cellar_models.network import Network
from cellar_models.recurrent import OPSET, TRANSLATIONS, Recurrent
from cellar_models.traces import clear_onnx, clear_torchscript
from cellar_models.verify import TOLERANCE, Report, VerifyError, verify


class _Prime(nn.Module):
    """A network's `prime` as a module of its own."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, condition: Tensor, state: Tensor) -> Tensor:
        return self.network.prime(condition, state)


def write_graphs(network: Network, folder: Path) -> None:
    """model.onnx and model.pt, and prime.onnx and prime.pt where there is a prime; batch and time left open.

    model.pt has all weights but those that only priming uses; these are in prime.pt.
    """
    import numpy as np

    network.eval()
    rng = np.random.default_rng(0)
    step_example = torch.from_numpy(network.example(3, 4, rng)), torch.zeros(3, network.state_size)
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    only_primed: set[str] = set()
    if network.has_prime:
        prime = _Prime(network).eval()
        example = torch.from_numpy(network.example_condition(3, rng)), torch.zeros(3, network.state_size)
        used = _used(prime, example)
        only_primed = {name.removeprefix("network.") for name in used} - _used(network, step_example)
        axes = {0: batch, 1: time} if network.is_prime_recurrent else {0: batch}
        _write_torchscript(_without(prime, set(prime.state_dict()) - used), example, folder / "prime.pt")
        _write_onnx(prime, example, (axes, {0: batch}), ["next_state"], folder / "prime.onnx")
    _write_torchscript(_without(network, only_primed), step_example, folder / "model.pt")
    _write_onnx(network, step_example, ({0: batch, 1: time}, {0: batch}), ["y", "next_state"], folder / "model.onnx")


def _used(module: nn.Module, example: tuple[Tensor, Tensor]) -> set[str]:
    """Names of the parameters and buffers that `forward` uses."""
    with _quiet():
        graph = torch.jit.trace(module, example, check_trace=False).inlined_graph
    paths, used = {next(graph.inputs()).debugName(): ""}, set()
    for node in graph.nodes():
        if node.kind() == "prim::GetAttr":
            path = f"{paths[node.input().debugName()]}{node.s('name')}"
            paths[node.output().debugName()] = f"{path}."
            used.add(path)
    return used & set(module.state_dict())


def _without(module: nn.Module, names: set[str]) -> nn.Module:
    """The module without the parameters and buffers of these names."""
    kept = copy.deepcopy(module)
    for name in names:
        part, _, last = name.rpartition(".")
        delattr(kept.get_submodule(part), last)
    return kept


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A network's weights out of its artefact's TorchScript files."""
    weights: dict[str, Tensor] = {}
    if (folder / "prime.pt").is_file():
        script = torch.jit.load(str(folder / "prime.pt"))
        weights = {name.removeprefix("network."): each for name, each in script.state_dict().items()}
    return weights | torch.jit.load(str(folder / "model.pt")).state_dict()


def check_codecs(network: Network, folder: Path) -> None:
    """VerifyError where an artefact's codec files are not those of the network as it is built: its weights belong to
    other words then."""
    with tempfile.TemporaryDirectory() as made:
        network.describe(Manifest(), Path(made))
        for path in Path(made).iterdir():
            held = folder / path.name
            if not held.is_file() or held.read_bytes() != path.read_bytes():
                raise VerifyError(f"{held} is not what {network.name} is built with: its weights are of other ids")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without gradients, and without the exporters' own remarks."""
    with warnings.catch_warnings(), torch.no_grad():
        # torch.jit works and is said to be on its way out; TorchScript is part of what an artefact promises
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        # PyTorch's layers compare sizes that are constants of the network; batch and time are tried by `verify`
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        # on its tree specifications, and that two inputs share the batch axis
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", category=UserWarning, message=".*axis name.*")
        yield


def _write_torchscript(module: nn.Module, example: tuple[Tensor, Tensor], path: Path) -> None:
    with _quiet():
        torch.jit.trace(module, example, check_trace=False).save(str(path))
    clear_torchscript(path)


def _write_onnx(
    module: nn.Module, example: tuple[Tensor, Tensor], axes: object, outputs: list[str], path: Path
) -> None:
    exported = copy.deepcopy(module)
    for part in exported.modules():
        if isinstance(part, Recurrent):
            part.prepare_export()
    with _quiet():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            exported,
            example,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=axes,  # type: ignore[arg-type]
            input_names=["x", "state"],
            output_names=outputs,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
            external_data=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    model = onnx.load(path)
    clear_onnx(model)
    pack(model)
    onnx.save(model, path)


def write_manifest(network: Network, version: int, report: Report, folder: Path) -> Manifest:
    """manifest.json, with the hashes of all that lies in the folder."""
    manifest = Manifest(format=1, name=network.name, version=version, state_size=network.state_size, opset=OPSET)
    network.describe(manifest, folder)
    manifest.step.file = "model.onnx"
    manifest.step.input, manifest.step.state_input = "x", "state"
    manifest.step.output, manifest.step.state_output = "y", "next_state"
    if (folder / "model.pt").is_file():
        manifest.torchscript_file = "model.pt"
    if network.has_prime:
        manifest.prime.graph.file = "prime.onnx"
        manifest.prime.graph.input, manifest.prime.graph.state_input = "x", "state"
        manifest.prime.graph.state_output = "next_state"
        manifest.prime_torchscript_file = "prime.pt"
    manifest.num_parameters = sum(p.numel() for p in network.parameters())
    manifest.parity.max_relative_error = report.max_relative_error
    manifest.parity.tolerance = TOLERANCE
    manifest.parity.is_bit_identical = report.is_bit_identical
    manifest.parity.min_rows, manifest.parity.min_steps = report.min_rows, report.min_steps
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in ("manifest.json", "CARD.md"):
            manifest.sha256[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    save_manifest(manifest, folder)
    return manifest


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """manifest.json, as people read it."""
    text = json_format.MessageToJson(manifest, preserving_proto_field_name=True, indent=1)
    (folder / "manifest.json").write_text(text + "\n")


def export(
    network: Network, zoo: Path, *, version: int = 1, card: str = "", samples: Callable[[Path], None] | None = None
) -> Path:
    """Writes `zoo`/<name>/<version>/ anew; VerifyError, and nothing written, where a graph fails.

    samples: called with the folder in which to put sample inputs.
    """
    target = zoo / network.name / str(version)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "entry"
        folder.mkdir()
        write_graphs(network, folder)
        report = verify(network, folder)
        manifest = write_manifest(network, version, report, folder)
        if samples is not None:
            (folder / "samples").mkdir()
            samples(folder / "samples")
        (folder / "CARD.md").write_text(card.format(manifest=manifest, report=report) if card else "")
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, target)
    return target


class _Callable(types.ModuleType):
    """`cellar_models.export` is this module and, called, the export of a user's own network (see own.entry)."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from cellar_models.own.entry import export

        return export(*args, **kwargs)


# the import of a submodule puts it in the package's place of that name, where people call it
sys.modules[__name__].__class__ = _Callable
