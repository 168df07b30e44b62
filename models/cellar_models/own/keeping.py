"""What a network keeps between steps, beside PyTorch's own layers, and what a sequence starts from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cellar_models.own.forms import Form
from cellar_models.own.handed import tensors_of
from cellar_models.own.node import kind_of
from cellar_models.own.stepper import Stepper
from cellar_models.own.subject import Call, Subject
from cellar_models.own.taps import as_it_is, tapped
from cellar_models.own.why import ExportError, Why


def convolutions(calls: list[Call], rows: int, steps: int) -> tuple[set[str], set[str]]:
    """Names of convolutions over something else than time, and of those whose input comes padded on the left."""
    plain, padded = set(), set()
    for call in calls:
        if not isinstance(call.module, nn.Conv1d):
            continue
        conv, (batch, _, length) = call.module, call.x.shape
        overlap = conv.dilation[0] * (conv.kernel_size[0] - 1)
        if batch != rows:
            plain.add(call.name)
            continue
        pad = conv.padding if isinstance(conv.padding, str) else conv.padding[0]
        if conv.stride[0] != 1:
            raise ExportError(
                Why.CHANGES_LENGTH, f"`{call.name}` has stride {conv.stride[0]}: {Why.CHANGES_LENGTH.value}"
            )
        if pad == "same" or (pad not in (0, "valid") and pad != overlap):
            raise ExportError(
                Why.LOOKS_AHEAD,
                f"`{call.name}` has padding {pad!r} with a kernel of {conv.kernel_size[0]}, so that an output needs "
                f"later inputs. Causal: pad {overlap} zeros on the left and none on the right",
            )
        if pad in (0, "valid"):
            if length == steps:
                raise ExportError(
                    Why.CHANGES_LENGTH,
                    f"`{call.name}` has no padding and gives {overlap} steps fewer than it takes. Causal: {overlap} "
                    "zeros padded on the left",
                )
            if length != steps + overlap or bool(call.x[:, :, :overlap].any()):
                raise ExportError(
                    Why.LOOKS_AHEAD, f"`{call.name}` is padded otherwise than by {overlap} zeros on the left"
                )
            padded.add(call.name)
        elif conv.padding_mode != "zeros":
            raise ExportError(Why.LOOKS_AHEAD, f"`{call.name}` pads with {conv.padding_mode}, not with zeros")
    return plain, padded


def own_cells(subject: Subject, rows: int) -> set[str]:
    """Modules of the user's own that are cells: called once a step, given at one step what they gave at the last."""
    outputs: dict[str, list[list[Tensor]]] = {}
    inputs: dict[str, list[list[Tensor]]] = {}

    def note(name: str, module: nn.Module, arguments: tuple[object, ...]) -> object:
        found = type(module).forward(module, *arguments)
        inputs.setdefault(name, []).append([t for each in arguments[1:] for t in tensors_of(each)])
        outputs.setdefault(name, []).append(tensors_of(found))
        return found

    candidates = {
        name: each
        for name, each in subject.module.named_modules()
        if name and not type(each).__module__.startswith("torch.") and not isinstance(each, nn.ModuleList)
    }
    with tapped(subject.module, note, candidates, is_packing=False):
        subject.run(subject.sample(rows, 2, 0))
    found = set()
    for name, given in inputs.items():
        if len(given) == 2 and given[1] and all(any(t is o for o in outputs[name][0]) for t in given[1]):
            found.add(name)
    return {name for name in found if not any(name.startswith(f"{other}.") for other in found)}


def start_row(subject: Subject, stepper: Stepper, x: Tensor) -> Tensor:
    """The row [S] that a sequence starts from: what the network hands its layers at the first step."""
    if stepper.form is Form.GIVEN:
        return subject.start_row()
    start = torch.zeros(stepper.state_size)
    seen: dict[str, Tensor] = {}
    for seed in (0, 5):
        found = _given_hidden(subject, stepper, subject.sample(x.shape[0], 1, seed))
        for name, rows in found.items():
            for row in rows:
                known = seen.setdefault(name, row)
                if not torch.allclose(known, row, rtol=1e-5, atol=1e-6):
                    raise ExportError(
                        Why.START_FROM_INPUT,
                        f"the first state of `{name.rsplit('.', 1)[0]}` is computed from the input (an encoder, say, "
                        "or a first frame): a session must start before any input is there",
                    )
    at = 0
    for name, shape in stepper.parts:
        size = math.prod(shape)
        if name in seen:
            start[at : at + size] = seen[name].flatten()
        at += size
    return start


def _given_hidden(subject: Subject, stepper: Stepper, x: Tensor) -> dict[str, Tensor]:
    """By part: the hidden state [rows, ...] that each layer is handed for a sequence of one step."""
    found: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(layer: str, module: nn.Module, arguments: tuple[object, ...]) -> object:
        counts[layer] = counts.get(layer, 0) + 1
        name = layer if counts[layer] < 2 else f"{layer}#{counts[layer]}"
        hidden = [t.detach().clone() for each in arguments[1:] for t in tensors_of(each)]
        is_layer = isinstance(module, nn.RNNBase)
        for k, tensor in enumerate(hidden if not isinstance(module, nn.Conv1d) else []):
            letter = "hc"[k] if kind_of(module) else str(k)
            if is_layer and (layer not in stepper.growing or stepper.form is Form.FOLDED):
                for j in range(tensor.shape[0]):
                    found[f"{name}.{j}.{letter}"] = tensor[j]
            else:
                found[f"{name}.{letter}"] = tensor.movedim(1, 0) if is_layer else tensor
        return as_it_is(module, arguments)

    with torch.no_grad(), tapped(subject.module, note, stepper.taps):
        subject.run(x)
    return found
