"""An ONNX file with state inputs and outputs: which pair is which, said by the caller, the file, or only guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cellar_models.own.why import ExportError, Why

_BATCH = re.compile(r"^(b|n|bs|batch.*|.*_batch)$", re.IGNORECASE)
_TIME = re.compile(r"^(t|s|l|time.*|seq.*|steps?|len.*|.*_(time|steps?|len|length))$", re.IGNORECASE)
_STATE = re.compile(
    r"(^|[^a-z])(h|c|hx|cx|hn|cn|h0|c0|state|states|hidden|cell|cache|memory|past)([^a-z]|$)", re.IGNORECASE
)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
Size = int | str | None


def sizes_of(place: onnx.ValueInfoProto) -> list[Size]:
    """A number, a symbol, or None for each axis."""
    return [
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
        for dim in place.type.tensor_type.shape.dim
    ]


@dataclass
class Proposal:
    """What was said, and what is only guessed: guesses hold nowhere until somebody has confirmed them."""

    pairs: dict[str, str] = field(default_factory=dict)
    axes: tuple[str, ...] = ()
    state_axes: dict[str, int] = field(default_factory=dict)
    guesses: list[str] = field(default_factory=list)
    why: Why = Why.PAIRS


@dataclass
class Source:
    """An ONNX file as it is. constants: inputs that are set once and for all, by name."""

    model: onnx.ModelProto
    constants: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path, constants: Mapping[str, float]) -> Source:
        """ExportError EXAMPLE for what is no ONNX model, or a constant that names no input."""
        try:
            model = onnx.load(str(file))
            onnx.checker.check_model(model)
        except Exception as error:
            raise ExportError(Why.EXAMPLE, f"{file} is no ONNX model: {' '.join(str(error).split())[:200]}") from None
        source = cls(model, constants)
        known = {place.name: place for place in model.graph.input}
        for name, value in constants.items():
            if name not in known:
                raise ExportError(Why.EXAMPLE, f"--constant {name}: the inputs are {', '.join(known)}")
            place = known[name]
            shape = [size if isinstance(size, int) else 1 for size in sizes_of(place)]
            dtype = helper.tensor_dtype_to_np_dtype(place.type.tensor_type.elem_type)
            model.graph.initializer.append(numpy_helper.from_array(np.full(shape, value, dtype), name))
            model.graph.input.remove(place)
        return source

    @property
    def inputs(self) -> dict[str, onnx.ValueInfoProto]:
        """By name, without the weights that old files list among them."""
        weights = {each.name for each in self.model.graph.initializer}
        return {place.name: place for place in self.model.graph.input if place.name not in weights}

    @property
    def outputs(self) -> dict[str, onnx.ValueInfoProto]:
        return {place.name: place for place in self.model.graph.output}

    def propose(
        self, pairs: Mapping[str, str], x: str, axes: Sequence[str], state_axes: Mapping[str, int]
    ) -> tuple[str, Proposal]:
        """The name of the sequence input, and everything that is needed: as said, as the file itself says it (symbols
        of its axes), or guessed. ExportError PAIRS, AXES for what contradicts the file."""
        made = Proposal(dict(pairs), tuple(axes), dict(state_axes))
        for given, following in pairs.items():
            if given not in self.inputs or following not in self.outputs:
                raise ExportError(
                    Why.PAIRS,
                    f"{given}:{following}: the inputs are {', '.join(self.inputs)}, the outputs "
                    f"{', '.join(self.outputs)}",
                )
        if not pairs:
            made.pairs = self._guess_pairs(x)
            made.guesses += [f"--pair {given}:{following}" for given, following in made.pairs.items()]
        if not made.pairs:
            raise ExportError(
                Why.PAIRS,
                f"no input looks like a state: name it with --pair IN:OUT; the inputs are {self._listed(self.inputs)}, "
                f"the outputs {self._listed(self.outputs)}",
            )
        rest = [name for name in self.inputs if name not in made.pairs]
        if x and x not in rest:
            raise ExportError(Why.PAIRS, f"--input {x}: it is no input, or a state")
        if len(rest) != 1:
            raise ExportError(
                Why.SEVERAL_INPUTS if rest else Why.PAIRS,
                f"beside the states the file takes {', '.join(rest) or 'nothing'}: a step takes one input; set others "
                "with --constant NAME=VALUE",
            )
        x = rest[0]
        self._find_axes(x, made)
        return x, made

    def _guess_pairs(self, x: str) -> dict[str, str]:
        """States by their names, each with the output of its shape whose name is most like it."""
        candidates = [
            name for name, place in self.inputs.items()
            if name != x and place.type.tensor_type.elem_type in _FLOATS and _STATE.search(name.replace("_", " "))
        ]  # fmt: skip
        if not candidates and len(self.inputs) > 1:
            candidates = [name for name in list(self.inputs)[1:] if name != x]
        found: dict[str, str] = {}
        for name in candidates:
            shape = sizes_of(self.inputs[name])
            likely = [
                out for out, place in self.outputs.items()
                if out not in found.values() and _fits(shape, sizes_of(place))
                and place.type.tensor_type.elem_type == self.inputs[name].type.tensor_type.elem_type
            ]  # fmt: skip
            if likely:
                found[name] = max(likely, key=lambda out, name=name: _likeness(name, out))  # type: ignore[misc]
        return found

    def _listed(self, places: Mapping[str, onnx.ValueInfoProto]) -> str:
        return ", ".join(f"{name} {sizes_of(place)}" for name, place in places.items())

    def _find_axes(self, x: str, made: Proposal) -> None:
        sizes = sizes_of(self.inputs[x])
        if not made.axes:
            named = ["batch" if isinstance(s, str) and _BATCH.match(s) else
                     "time" if isinstance(s, str) and _TIME.match(s) else "" for s in sizes[:2]]  # fmt: skip
            if sorted(named) == ["batch", "time"]:
                made.axes = (named[0], named[1])
            else:
                made.why = Why.AXES if made.pairs and not made.guesses else made.why
                made.axes = ("time", "batch") if named[:1] == ["time"] or named[1:] == ["batch"] else ("batch", "time")
                made.axes = made.axes if len(sizes) > 2 else ("batch",)
                made.guesses.append(f"--axes {','.join(made.axes)} (of {x} {sizes})")
        if made.axes not in (("batch", "time"), ("time", "batch"), ("batch",)) or len(made.axes) > len(sizes):
            raise ExportError(
                Why.AXES, f"--axes {','.join(made.axes)}: give batch,time or time,batch or batch for {x} {sizes}"
            )
        batch = sizes[made.axes.index("batch")]
        for name in made.pairs:
            shape = sizes_of(self.inputs[name])
            if name in made.state_axes:
                continue
            known = [
                axis
                for axis, size in enumerate(shape)
                if isinstance(size, str) and (size == batch or _BATCH.match(size))
            ]
            if len(known) == 1:
                made.state_axes[name] = known[0]
                continue
            made.state_axes[name] = 1 if len(shape) == 3 else 0
            made.why = Why.AXES if not made.guesses else made.why
            made.guesses.append(f"--state-axis {name}={made.state_axes[name]} (of {name} {shape})")
        for name, axis in made.state_axes.items():
            shape = sizes_of(self.inputs[name]) if name in self.inputs else []
            if not 0 <= axis < len(shape):
                raise ExportError(Why.AXES, f"--state-axis {name}={axis}: its shape is {shape}")
            others = [size for k, size in enumerate(shape) if k != axis]
            if not all(isinstance(size, int) and size > 0 for size in others):
                raise ExportError(
                    Why.AXES, f"the state {name} {shape} must have numbers on all axes but its batch, {axis}"
                )


def _fits(one: list[Size], other: list[Size]) -> bool:
    return len(one) == len(other) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int) for a, b in zip(one, other, strict=True)
    )


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()
