"""Calls of a network's recurrent layers, cells and convolutions, taken over for the length of one pass."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from cellar_models.own.node import kind_of
from cellar_models.own.why import ExportError, Why

# What takes a call over: (name of the layer, the layer, its arguments in order) -> its outputs.
Handler = Callable[[str, nn.Module, tuple[Any, ...]], Any]


class Packed:
    """Sequences of equal length where the network packs them: nothing is padded, so there is nothing to pack."""

    def __init__(self, values: Tensor, batch_first: bool) -> None:
        self.values, self.batch_first = values, batch_first

    def __getattr__(self, name: str) -> Any:
        raise ExportError(Why.PACKED_ELSEWHERE, f"the network reads {name!r} of a packed sequence")


def _pack(input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> Packed:
    return Packed(input, batch_first)


def _pad(sequence: Packed, batch_first: bool = False, padding_value: float = 0.0, total_length: Any = None) -> Any:
    values = sequence.values if sequence.batch_first == batch_first else sequence.values.transpose(0, 1)
    rows, steps = values.shape[:2] if batch_first else (values.shape[1], values.shape[0])
    return values, torch.full((rows,), steps, dtype=torch.int64)


_PACKING = {rnn.pack_padded_sequence: _pack, rnn.pad_packed_sequence: _pad}


def is_tapped(module: nn.Module) -> bool:
    """A layer, cell or convolution over time that keeps something between steps."""
    return bool(kind_of(module)) or (isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1)


@contextmanager
def tapped(
    module: nn.Module, handler: Handler, layers: dict[str, nn.Module] | None = None, *, is_packing: bool = True
) -> Iterator[None]:
    """Inside, the calls of the layers by name (None: of all that `is_tapped`) go to the handler. is_packing: packed
    sequences are taken over too, which all recurrent layers must then know."""
    chosen = {name: each for name, each in module.named_modules() if is_tapped(each)} if layers is None else layers
    for name, each in chosen.items():
        each.forward = functools.partial(_ordered, handler, name, each)
    spaces = [torch.nn.utils.rnn.__dict__]
    for part in module.modules():
        space = getattr(sys.modules.get(type(part).__module__), "__dict__", None)
        for each in (space, getattr(type(part).forward, "__globals__", None)):
            if each is not None and not any(each is known for known in spaces):
                spaces.append(each)
    replaced = [
        (space, name, value, ours)
        for space in spaces
        for name, value in list(space.items())
        for theirs, ours in _PACKING.items()
        if is_packing and value is theirs
    ]
    for space, name, _, ours in replaced:
        space[name] = ours
    try:
        yield
    finally:
        for space, name, value, _ in replaced:
            space[name] = value
        for each in chosen.values():
            del each.forward


def _ordered(handler: Handler, name: str, module: nn.Module, *args: Any, **more: Any) -> Any:
    """Keyword arguments of PyTorch's layers (input, hx) come in their order."""
    first = (more.pop("input"),) if "input" in more else ()
    return handler(name, module, (*first, *args, *more.values()))


@contextmanager
def as_it_was(module: nn.Module) -> Iterator[None]:
    """Afterwards the module holds what it held: networks keep their hidden state as an attribute."""
    kept = [(part, dict(part.__dict__), dict(part._buffers)) for part in module.modules()]
    values = [(buffer, buffer.clone()) for _, _, buffers in kept for buffer in buffers.values() if buffer is not None]
    try:
        yield
    finally:
        for part, attributes, buffers in kept:
            part.__dict__.clear()
            part.__dict__.update(attributes)
            part._buffers.clear()
            part._buffers.update(buffers)
        if not torch.compiler.is_exporting() and not torch.jit.is_tracing():
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def sequence_of(module: nn.Module, x: Any) -> tuple[Tensor, bool]:
    """A layer's input, and whether its batch axis comes first."""
    if isinstance(x, Packed):
        return x.values, x.batch_first
    if isinstance(x, rnn.PackedSequence):
        raise ExportError(Why.PACKED_ELSEWHERE, "a layer was given a packed sequence that was packed elsewhere")
    return x, bool(getattr(module, "batch_first", True))


def hidden_of(hx: Any) -> list[Tensor]:
    """The tensors of a hidden state as it was given: h, or h and c; none where it was left out."""
    if hx is None:
        return []
    return list(hx) if isinstance(hx, tuple | list) else [hx]


def as_it_is(module: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """A layer's own forward; on the values of a packed sequence where it was given one."""
    first = arguments[0]
    if not isinstance(first, Packed):
        return type(module).forward(module, *arguments)
    own = bool(getattr(module, "batch_first", True))
    values = first.values if own == first.batch_first else first.values.transpose(0, 1)
    y, hidden = type(module).forward(module, values, *arguments[1:])
    return Packed(y if own == first.batch_first else y.transpose(0, 1), first.batch_first), hidden
