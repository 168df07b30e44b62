"""Other precisions of an artefact: made beside its float32 graphs, verified, and judged by the same measures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from cellar_proto.v1.manifest_pb2 import Manifest, Parity, Variant
from google.protobuf import json_format
from torch import Tensor, nn

from cellar_models.export import save_manifest
from cellar_models.network import Network
from cellar_models.quantize import quantize
from cellar_models.verify import CUTS, ROWS, VerifyError, in_cuts, open_session

INT8_FILE = "model.int8.onnx"
HEADING = "## int8"
# An int8 graph further from float32 than this, of the largest output, is refused: it computes something else.
FARTHEST = 0.25


class Served(nn.Module):
    """A network whose step is computed by one of its ONNX graphs; everything else is the network's own."""

    def __init__(self, network: Network, graph: Path) -> None:
        super().__init__()
        self._network = (network,)
        self._session = open_session(graph)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_network"][0], name)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, following = self._session.run(None, {"x": x.numpy(), "state": state.numpy()})
        return torch.from_numpy(y), torch.from_numpy(following)


@dataclass(frozen=True)
class Distance:
    """How far a variant is from the float32 graph, of the largest output: step by step from the same state at most,
    and after 16 steps; is_bit_identical: at any rows and cuts, also beside rows far out of bounds."""

    one_step: float
    whole: float
    is_bit_identical: bool


def add_int8(network: Network, folder: Path, evaluate: Callable[[Network], str] | None = None) -> Variant:
    """Puts an int8 step graph into an artefact's folder, names it in the manifest and writes its part of the card.

    evaluate: gives the card's table of measures for the network as int8 computes it. VerifyError, and nothing
    changed, where the graph is nowhere near the float32 one.
    """
    rng = np.random.default_rng(0)
    x, start = network.example(64, 64, rng), _start(network, 64, rng)
    made = quantize(onnx.load(folder / "model.onnx"), {"x": x, "state": start})
    path = folder / INT8_FILE
    try:
        onnx.save(made.model, path)
        distance = measure(network, folder)
        if not distance.whole < FARTHEST:
            raise VerifyError(f"{network.name}: int8 differs by {distance.whole:.2f} of the largest output")
        text = _section(distance, evaluate(Served(network, path)) if evaluate else "")  # type: ignore[arg-type]
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    manifest = json_format.Parse((folder / "manifest.json").read_text("utf-8"), Manifest())
    kept = [each for each in manifest.variants if each.precision != "int8"]
    parity = Parity(max_relative_error=distance.whole, tolerance=FARTHEST, is_bit_identical=distance.is_bit_identical)
    # what is left in float32 may need what it needed before
    parity.min_rows, parity.min_steps = (
        (1, 1) if distance.is_bit_identical else (manifest.parity.min_rows, manifest.parity.min_steps)
    )
    variant = Variant(precision="int8", step_file=INT8_FILE, parity=parity)
    del manifest.variants[:]
    manifest.variants.extend([*kept, variant])
    manifest.sha256[INT8_FILE] = hashlib.sha256(path.read_bytes()).hexdigest()
    save_manifest(manifest, folder)
    card = folder / "CARD.md"
    before = card.read_text("utf-8").split(HEADING)[0].rstrip() if card.is_file() else ""
    card.write_text(f"{before}\n\n{text}".lstrip())
    return variant


def _start(network: Network, rows: int, rng: np.random.Generator) -> np.ndarray:
    start = np.zeros((rows, network.state_size), np.float32)
    if network.has_prime:
        with torch.no_grad():
            start = network.prime(
                torch.from_numpy(network.example_condition(rows, rng)), torch.from_numpy(start)
            ).numpy()
    return start


def measure(network: Network, folder: Path, seed: int = 1) -> Distance:
    """Holds the int8 graph in `folder` to the float32 one, at rows 1, 2, 7, 64, 256 in cuts of 1, 2, 5 and 16
    (of the whole sequence, where a network needs it)."""
    rng = np.random.default_rng(seed)
    x, start = network.example(max(ROWS), max(CUTS), rng), _start(network, max(ROWS), rng)
    exact, session = open_session(folder / "model.onnx"), open_session(folder / INT8_FILE)
    expected, _ = exact.run(None, {"x": x, "state": start})
    whole, _ = session.run(None, {"x": x, "state": start})
    largest = float(np.abs(expected).max())
    one_step, state = 0.0, start
    for t in range(x.shape[1]):
        one = {"x": x[:, t : t + 1], "state": state}
        y, state = exact.run(None, one)
        one_step = max(one_step, float(np.abs(session.run(None, one)[0] - y).max()) / largest)
    is_same = all(
        np.array_equal(in_cuts(session, x[:rows], start[:rows], _cuts(cut)), whole[:rows])
        for rows in ROWS
        for cut in (CUTS[-1:] if network.is_whole_only else CUTS)
    )
    if x.dtype == np.float32:
        hostile = x.copy()
        hostile[1::2] *= np.float32(1e6)
        is_same &= np.array_equal(session.run(None, {"x": hostile, "state": start})[0][::2], whole[::2])
    return Distance(one_step, float(np.abs(whole - expected).max()) / largest, bool(is_same))


def _cuts(cut: int) -> list[int]:
    return [cut] * (16 // cut) + ([16 % cut] if 16 % cut else [])


def _section(distance: Distance, table: str) -> str:
    bits = "The same" if distance.is_bit_identical else "Not the same"
    return (
        f"""{HEADING}

`{INT8_FILE}`: the recurrent layers in 8-bit whole numbers, by scales that are constants of the graph. What goes into a
layer is cut to bounds found on examples. {bits} bits at all rows and cuts that were tried, and beside batch-mates whose
inputs are a million times too large.
From float32, of the largest output: {distance.one_step:.1e} at most in one step, {distance.whole:.1e} after 16.

{table}
""".rstrip()
        + "\n"
    )
