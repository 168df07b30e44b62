"""A user's network as it was handed in: called on batch-first sequences of any size, its output row by row."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cellar_models.own.handed import Unrolled, copied, filled, tensors_of, unwrapped
from cellar_models.own.node import kind_of
from cellar_models.own.taps import as_it_is, as_it_was, hidden_of, sequence_of, tapped
from cellar_models.own.why import ExportError, Why

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTS = {torch.int64: torch.int64, torch.int32: torch.int64, torch.int16: torch.int16, torch.uint8: torch.uint8}


@dataclass
class Call:
    """One call of a layer: its place, input, and hidden state as given (clones)."""

    name: str
    module: nn.Module
    x: Tensor
    batch_first: bool
    hidden: list[Tensor]

    @property
    def rows(self) -> int:
        if kind_of(self.module) and isinstance(self.module, nn.RNNBase) and self.x.dim() == 3:
            return self.x.shape[0 if self.batch_first else 1]
        return self.x.shape[0]


@dataclass
class Layout:
    """Where rows and steps stand in an output. step: shape of one emission; time_axis: None for many-to-one;
    flat: "", "rows" or "steps" (rows and steps in one axis, whichever is outer)."""

    row_axis: int
    time_axis: int | None
    step: tuple[int, ...]
    flat: str = ""


@dataclass
class Subject:
    """module: in evaluation mode, float32; example: x as given; state: the caller's own, nested, or None."""

    module: nn.Module
    example: Tensor
    takes_lengths: bool = False
    state: Any = None
    output: int | str | None = None
    is_time_first: bool = False
    vocabulary: int = 0
    layout: Layout | None = None
    notes: list[str] = field(default_factory=list)
    state_axes: list[int] = field(default_factory=list)
    spreads: bool = False  # forward(x, h, c) takes the state's tensors one by one

    @classmethod
    def of(
        cls, module: Any, example: Any, state: Any, output: int | str | None, *, single_step: bool = False
    ) -> Subject:
        """A copy of the network to work on. ExportError EXAMPLE, SCRIPTED, SEVERAL_INPUTS, STATE."""
        module = unwrapped(module)
        notes: list[str] = []
        given = list(example) if isinstance(example, tuple | list) else [example]
        x = given[0] if given else None
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(x)
        if single_step and isinstance(x, Tensor):
            x, module = x.unsqueeze(1), Unrolled(module)
        if (
            not isinstance(x, Tensor)
            or x.dim() < 2
            or not x.numel()
            or (x.dtype not in _FLOATS and x.dtype not in _INTS)
        ):
            raise ExportError(Why.EXAMPLE, Why.EXAMPLE.value)
        more = given[1:]
        lengths = [each for each in more if _is_lengths(each, x)]
        if len(lengths) < len(more) or len(lengths) > 1:
            raise ExportError(
                Why.SEVERAL_INPUTS,
                f"{Why.SEVERAL_INPUTS.value} (and, beside it, the lengths [batch] of padded sequences): "
                "put what belongs to a step side by side in one tensor [batch, time, ...]",
            )
        if x.dtype in _FLOATS and x.dtype != torch.float32:
            notes.append(f"the network runs in float32, not in {str(x.dtype).removeprefix('torch.')}")
        is_training = module.training
        try:
            module = copied(module).cpu().float().eval()
        except Exception as error:
            # the old weight_norm keeps a computed weight, a trainer its threads: the words of whoever refuses
            text = " ".join(str(error).split())[:200]
            raise ExportError(
                Why.EXPORTER,
                f"it cannot be copied ({type(error).__name__}: {text}); take weight_norm off, export the bare network",
            ) from error
        if is_training and any(_differs_in_training(each) for each in module.modules()):
            notes.append("exported in evaluation mode: dropout is off, batch normalisation uses its running figures")
        x = x.detach().cpu().to(torch.float32 if x.dtype in _FLOATS else _INTS[x.dtype])
        subject = cls(module, x, bool(lengths), None, output, notes=notes)
        if state is not None:
            subject._take_state(state)
            taken = inspect.signature(module.module.forward if isinstance(module, Unrolled) else module.forward)
            places = [p for p in taken.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
            subject.spreads = isinstance(state, tuple | list) and len(state) > 1 and len(places) == 1 + len(state)
        return subject

    def _take_state(self, state: Any) -> None:
        tensors = tensors_of(state)
        rows = (self.example.shape[0], self.example.shape[1])
        if not tensors or any(not tensor.is_floating_point() for tensor in tensors):
            raise ExportError(Why.STATE, Why.STATE.value)
        for tensor in tensors:
            axes = [axis for axis, size in enumerate(tensor.shape) if size == rows[0]]
            # [layers, batch, size], as PyTorch has it, where the sizes alone leave it open
            axis = 1 if tensor.dim() == 3 and tensor.shape[1] == rows[0] else (axes or [-1])[0]
            if axis < 0:
                raise ExportError(
                    Why.STATE,
                    f"a state tensor of shape {list(tensor.shape)} has no axis of the example's {rows[0]} rows",
                )
            self.state_axes.append(axis)
            first = tensor.detach().select(axis, 0)
            if not torch.equal(first.unsqueeze(axis).expand_as(tensor), tensor):
                raise ExportError(
                    Why.STATE, "the rows of the state given differ: give the state that a sequence starts from"
                )
        self.state = state

    # what it is called with

    def start_rows(self) -> list[Tensor]:
        """One row of each tensor of the given state, batch axis removed."""
        return [
            t.detach().cpu().float().select(a, 0) for t, a in zip(tensors_of(self.state), self.state_axes, strict=True)
        ]

    def state_of(self, row: Tensor) -> Any:
        """The caller's nesting from rows [batch, S]."""
        made, at = [], 0
        for first, axis in zip(self.start_rows(), self.state_axes, strict=True):
            part = row[:, at : at + first.numel()].reshape(row.shape[0], *first.shape)
            made.append(part.movedim(0, axis))
            at += first.numel()
        return filled(self.state, made)

    def row_of(self, state: Any) -> Tensor:
        """Rows [batch, S] from the caller's nesting."""
        tensors = tensors_of(state)
        if len(tensors) != len(self.state_axes):
            raise ExportError(
                Why.STATE, f"the network returns {len(tensors)} state tensors and takes {len(self.state_axes)}"
            )
        return torch.cat([t.movedim(a, 0).flatten(1) for t, a in zip(tensors, self.state_axes, strict=True)], dim=1)

    def start_row(self) -> Tensor:
        """The given state's row [S]."""
        return torch.cat([row.flatten() for row in self.start_rows()])

    def call(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The chosen output as the module gives it, and the rest of what it returns; x [batch, time, ...]."""
        arguments: list[Any] = [x.transpose(0, 1) if self.is_time_first else x]
        if self.takes_lengths:
            arguments.append(torch.full((x.shape[0],), 1, dtype=torch.int64) * x.shape[1])
        if self.state is not None:
            given = self.state_of(self.start_row().expand(x.shape[0], -1)) if state is None else state
            arguments += list(given) if self.spreads else [given]
        with as_it_was(self.module):
            found = self.module(*arguments)
            return self._chosen(found)

    def _chosen(self, found: Any) -> tuple[Tensor, Any]:
        rest: Any = None
        if self.state is not None and self.output is None:
            if not isinstance(found, tuple | list) or len(found) < 2:
                raise ExportError(Why.STATE, "state= was given, and the network does not return (output, state)")
            found, rest = found[0], (found[1] if len(found) == 2 else found[1:])
        elif self.output is not None:
            if isinstance(found, Tensor):
                raise ExportError(
                    Why.SEVERAL_OUTPUTS, f"the network has one output, and output={self.output!r} was given"
                )
            try:
                rest = [each for key, each in enumerate(found) if key != self.output]
                found = found[self.output]
            except (KeyError, IndexError, TypeError):
                raise ExportError(Why.SEVERAL_OUTPUTS, f"the network has no output {self.output!r}") from None
        elif isinstance(found, tuple | list):
            found, rest = found[0], found[1:]
        if not isinstance(found, Tensor):
            raise ExportError(
                Why.SEVERAL_OUTPUTS, f"the output is a {type(found).__name__}: {Why.SEVERAL_OUTPUTS.value}"
            )
        return found, rest

    # what is found out by calling it

    def sample(self, rows: int, steps: int, seed: int) -> Tensor:
        """Inputs [rows, steps, ...] like the example's: normal of its mean and spread, or ids as they may come."""
        example = self.example.transpose(0, 1) if self.is_time_first else self.example
        make = torch.Generator().manual_seed(seed)
        shape = (rows, steps, *example.shape[2:])
        if example.dtype == torch.float32:
            frames = example.flatten(0, 1)
            spread = frames.std(0, correction=0) if len(frames) > 1 else torch.zeros_like(frames[0])
            spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
            return frames.mean(0) + spread * torch.randn(shape, generator=make)
        if self.vocabulary:
            return torch.randint(0, self.vocabulary, shape, generator=make)
        if example.dtype == torch.int64:
            frames = example.flatten(0, 1)
            return frames[torch.randint(0, len(frames), (rows, steps), generator=make)]
        low, high = (0, 256) if example.dtype == torch.uint8 else (-8192, 8192)
        return torch.randint(low, high, shape, generator=make).to(example.dtype)

    def record(self, x: Tensor) -> tuple[Tensor, list[Call], Any]:
        """The output for a whole sequence, every call of a tapped layer, and what else it returned."""
        calls: list[Call] = []

        def note(name: str, module: nn.Module, arguments: tuple[Any, ...]) -> Any:
            values, batch_first = sequence_of(module, arguments[0])
            hidden = hidden_of(arguments[1]) if len(arguments) > 1 and kind_of(module) else []
            calls.append(Call(name, module, values.detach().clone(), batch_first, [h.detach().clone() for h in hidden]))
            return as_it_is(module, arguments)

        with torch.no_grad(), tapped(self.module, note):
            y, rest = self.run(x)
        return y, calls, rest

    def run(self, x: Tensor) -> tuple[Tensor, Any]:
        """`call` without gradients; ExportError FORWARD_FAILED where it raises."""
        try:
            with torch.no_grad():
                return self.call(x)
        except ExportError:
            raise
        except Exception as error:
            # whatever the user's code raises is the answer to why it cannot be served
            text = " ".join(str(error).split())[:300]
            raise ExportError(
                Why.FORWARD_FAILED,
                f"it runs on the example's sizes only, or not at all: {x.shape[0]} rows of {x.shape[1]} steps give "
                f"{type(error).__name__}: {text}",
            ) from error

    def counts(self, steps: int) -> Counter[str]:
        """Calls of each tapped layer for a sequence of so many steps."""
        _, calls, _ = self.record(self.sample(3, steps, 1))
        return Counter(call.name for call in calls)


def _differs_in_training(module: nn.Module) -> bool:
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    return isinstance(module, kinds) or (isinstance(module, nn.RNNBase) and module.dropout > 0)


def _is_lengths(value: Any, x: Tensor) -> bool:
    if isinstance(value, list):
        value = torch.tensor(value)
    return (
        isinstance(value, Tensor) and value.dim() == 1 and not value.is_floating_point() and len(value) in x.shape[:2]
    )
