"""A user's network as a step over one state row, in one of four forms."""

from __future__ import annotations

import math
from typing import Any

import torch
from cellar_proto.v1.manifest_pb2 import StatePart
from torch import Tensor, nn
from torch.nn import functional

from cellar_models.own.forms import Form, Pass, in_order
from cellar_models.own.handed import filled, tensors_of
from cellar_models.own.node import KINDS, hidden_sizes, kind_of, onnx_weights, run_cell, run_layer, suffixes
from cellar_models.own.subject import Subject
from cellar_models.own.taps import Packed, hidden_of, is_tapped, sequence_of, tapped
from cellar_models.own.why import ExportError, Why


class Stepper(nn.Module):
    """forward(x [batch, time, ...], state float32 [batch, S]) -> (y float32 [batch, time, ...], next state).

    In the forms LOOP and GIVEN forward takes one step at a time ([batch, 1, ...]); `over` runs any of them over time.
    """

    def __init__(
        self,
        subject: Subject,
        form: Form,
        *,
        cells: dict[str, nn.Module],
        growing: set[str],
        plain: set[str],
        padded: set[str],
        softmax: bool = False,
    ) -> None:
        """cells: layers of the user's own that are taken over in a LOOP; growing: layers called once a step; plain:
        convolutions over something else than time; padded: convolutions whose input comes with its left padding."""
        super().__init__()
        self.module = subject.module
        self.subject, self.form, self.softmax = subject, form, softmax
        self.growing, self.padded = growing, padded
        self.is_exporting = False
        self.start = torch.zeros(1)
        self.parts: list[tuple[str, tuple[int, ...]]] = [("none", (1,))]
        named = dict(self.module.named_modules())
        self.taps = {name: each for name, each in named.items() if is_tapped(each) and name not in plain}
        if form in (Form.LOOP, Form.FED):
            inside = [f"{name}." for name in cells]
            self.taps = {k: v for k, v in self.taps.items() if not any(k.startswith(each) for each in inside)} | cells
        if form is Form.GIVEN or form is Form.WHOLE:
            self.taps = {name: each for name, each in self.taps.items() if kind_of(each)}
        self._pass = Pass(0, None)
        self._exported: dict[tuple[str, int], tuple[str, str, str]] = {}

    @property
    def state_size(self) -> int:
        return sum(math.prod(shape) for _, shape in self.parts)

    @property
    def is_stepwise(self) -> bool:
        """forward takes one step at a time."""
        return self.form in (Form.LOOP, Form.FED, Form.GIVEN)

    def state_parts(self) -> list[StatePart]:
        """The manifest's list of parts."""
        made, at = [], 0
        for name, shape in self.parts:
            made.append(StatePart(name=name, offset=at, shape=shape))
            at += math.prod(shape)
        return made

    def find_parts(self, x: Tensor) -> None:
        """Learns the row's parts from a pass over x."""
        if self.form is Form.GIVEN:
            self.parts = [(f"state.{k}", tuple(row.shape)) for k, row in enumerate(self.subject.start_rows())]
        elif self.form is not Form.WHOLE:
            self._pass = Pass(x.shape[0], None)
            self._forward(x, None)
            self.parts = self._pass.parts
        self.start = torch.zeros(self.state_size)

    def prepare_export(self) -> None:
        """Lays the layers' weights out as ONNX wants them and switches to the exported form."""
        for name, layer in self.taps.items():
            if kind_of(layer) and not self.is_stepwise:
                for k, names in enumerate(suffixes(layer)):
                    made = []
                    for letter, tensor in zip("wrb", onnx_weights(layer, names), strict=True):
                        made.append(f"onnx_{letter}{len(self._exported)}")
                        self.register_buffer(made[-1], tensor, persistent=False)
                    self._exported[name, k] = (made[0], made[1], made[2])
        self.is_exporting = True

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self._pass = Pass(x.shape[0], state)
        y, following = self._forward(x, state)
        if y.dtype != torch.float32:
            y = y.to(torch.float32)
        return (torch.softmax(y, -1) if self.softmax else y), following

    def over(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Any number of steps."""
        if not self.is_stepwise:
            found: tuple[Tensor, Tensor] = self(x, state)
            return found
        made = []
        for t in range(x.shape[1]):
            y, state = self(x[:, t : t + 1], state)
            made.append(y)
        return torch.cat(made, 1), state

    def _forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        subject, layout = self.subject, self.subject.layout
        assert layout is not None
        if self.form is Form.GIVEN:
            assert state is not None
            with tapped(self.module, self._given, self.taps):
                y, rest = subject.call(x, subject.state_of(state))
            return y.reshape(x.shape[0], 1, *layout.step), subject.row_of(rest)
        if self.form is Form.WHOLE:
            assert state is not None
            with tapped(self.module, self._whole, self.taps):
                y, _ = subject.call(x)
            y = in_order(y, layout, x.shape[0], x.shape[1])
            if layout.time_axis is None and not layout.flat:
                y = y[:, None].expand(x.shape[0], x.shape[1], *layout.step)
            return y, state
        if self.form is Form.FOLDED:
            # every step of every row is a row of its own, of one step
            with tapped(self.module, self._folded, self.taps):
                y, _ = subject.call(x.reshape(-1, 1, *x.shape[2:]))
            return y.reshape(x.shape[0], x.shape[1], *layout.step), self._row()
        with tapped(self.module, self._looped, self.taps):
            y, _ = subject.call(torch.cat([x, x], dim=1))
            following = self._row()
            is_aligned = layout.time_axis is not None or bool(layout.flat)
            if is_aligned:
                chosen = slice(1, 2) if self.form is Form.FED else slice(0, 1)
                return in_order(y, layout, x.shape[0], 2)[:, chosen], following
            if self.form is Form.FED:
                return in_order(y, layout, x.shape[0], 2)[:, None], following
            parts, self._pass = self._pass.parts, Pass(x.shape[0], state)
            y, _ = subject.call(x)
            self._pass.parts = parts
        return y.reshape(x.shape[0], 1, *layout.step), following

    def _row(self) -> Tensor:
        """The next state row."""
        missing = [name for name, _ in self._pass.parts if name not in self._pass.following]
        if missing:
            raise ExportError(Why.HIDDEN_LOOP, f"`{missing[0]}` is not given a state at the next step")
        return torch.cat([self._pass.following[name].flatten(1) for name, _ in self._pass.parts], dim=1)

    # one layer of any form: x [batch, time, input], h, c [directions, batch, size]

    def _layer(self, name: str, module: nn.Module, k: int, x: Tensor, h: Tensor, c: Tensor) -> Any:
        if not self.is_exporting:
            return run_layer(module, suffixes(module)[k], x, h, c)
        w, r, b = (getattr(self, each) for each in self._exported[name, k])
        relu = getattr(module, "nonlinearity", "") == "relu"
        return torch.ops.cellar.layer(x, w, r, b, h, c, KINDS.index(kind_of(module)), relu)

    def _take(self, name: str, module: nn.Module, k: int | None) -> tuple[Tensor, Tensor]:
        """h and c [rows, size] of a layer; c is h where there is none."""
        inner = "" if k is None else f".{k}"
        h_size, c_size = hidden_sizes(module)
        h = self._pass.take(f"{name}{inner}.h", (h_size,))
        return h, (self._pass.take(f"{name}{inner}.c", (c_size,)) if kind_of(module) == "lstm" else h)

    def _put(self, name: str, module: nn.Module, k: int | None, h: Tensor, c: Tensor) -> None:
        inner = "" if k is None else f".{k}"
        self._pass.following[f"{name}{inner}.h"] = h
        if kind_of(module) == "lstm":
            self._pass.following[f"{name}{inner}.c"] = c

    def _folded(self, layer: str, module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        """A layer, cell or convolution over the sequences, while the network around it sees single steps."""
        rows, name = self._pass.rows, self._pass.name(layer)
        if isinstance(module, nn.Conv1d):
            return self._convolve(name, module, arguments[0], layer in self.padded)
        values, batch_first = _sequence(layer, module, arguments[0])
        is_cell = not isinstance(module, nn.RNNBase)
        own = values if is_cell or batch_first else values.transpose(0, 1)
        x = own.reshape(rows, -1, own.shape[-1])
        outputs = []
        for k in range(len(suffixes(module))):
            h, c = self._take(name, module, None if is_cell else k)
            x, h, c = self._layer(layer, module, k, x, h[None], c[None])
            self._put(name, module, None if is_cell else k, h[0], c[0])
            outputs.append(x.reshape(-1, x.shape[-1]))
        # only the last c of a run is known: a network that reads c is found out by its outputs, and run step by step
        unknown = torch.full_like(outputs[-1], torch.nan)
        if is_cell:
            return (outputs[-1], unknown) if kind_of(module) == "lstm" else outputs[-1]
        hn = torch.stack(outputs)
        cn = torch.stack([unknown] * len(outputs))
        y = outputs[-1][:, None] if batch_first else outputs[-1][None]
        found: Any = Packed(y, batch_first) if isinstance(arguments[0], Packed) else y
        return found, ((hn, cn) if kind_of(module) == "lstm" else hn)

    def _convolve(self, name: str, module: nn.Conv1d, x: Tensor, is_padded: bool) -> Tensor:
        """A causal convolution: its zeros on the left give way to the last inputs, kept in the state."""
        overlap = module.dilation[0] * (module.kernel_size[0] - 1)
        if self.form is Form.FOLDED:
            x = x[:, :, overlap:] if is_padded else x  # [rows * steps, channels, 1]
            x = x.reshape(self._pass.rows, -1, module.in_channels).transpose(1, 2)
        else:
            x = x[:, :, overlap:] if is_padded else x
            x = x[:, :, 1:] if self.form is Form.FED else x
        full = torch.cat([self._pass.take(f"{name}.inputs", (module.in_channels, overlap)), x], dim=2)
        if self.form is Form.FOLDED:
            self._pass.following[f"{name}.inputs"] = full[:, :, full.shape[2] - overlap :]
        else:
            self._pass.following[f"{name}.inputs"] = full[:, :, 1 : 1 + overlap]
        y = functional.conv1d(full, module.weight, module.bias, 1, 0, module.dilation, module.groups)
        if self.form is Form.FOLDED:
            y = y.transpose(1, 2).reshape(-1, module.out_channels, 1)
        elif self.form is Form.FED:
            y = functional.pad(y, (1, 0))
        return y if is_padded else functional.pad(y, (0, overlap))

    def _looped(self, layer: str, module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        """Two steps: the first from the state row, and what the second is given becomes the next row."""
        if isinstance(module, nn.Conv1d):
            return self._convolve(self._pass.name(layer), module, arguments[0], layer in self.padded)
        if layer not in self.growing:
            return self._through(self._pass.name(layer), layer, module, arguments[0])
        self._pass.calls[layer] += 1
        if self.form is Form.FED:
            return self._fed(layer, module, arguments)
        hidden = [t for each in arguments[1:] for t in tensors_of(each)]
        if self._pass.calls[layer] > 1:
            for k, each in enumerate(hidden):
                axis = 1 if isinstance(module, nn.RNNBase) else 0
                self._pass.following[_carried(layer, module, k)] = each.movedim(axis, 0)
            return self._cell_call(layer, module, arguments)
        taken = []
        for k, shape in enumerate(self._shapes(module, hidden)):
            part = self._pass.take(_carried(layer, module, k), shape)
            taken.append(part.movedim(0, 1) if isinstance(module, nn.RNNBase) else part)
        if kind_of(module):
            given: tuple[Any, ...] = (tuple(taken) if len(taken) > 1 else taken[0],)
        else:
            given = tuple(filled(list(arguments[1:]), taken))
        return self._cell_call(layer, module, (arguments[0], *given))

    def _fed(self, layer: str, module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        """Two steps: the first call's hidden outputs are the state row, the second's are the next one."""
        found = self._cell_call(layer, module, arguments)
        is_layer = isinstance(module, nn.RNNBase)
        hidden = tensors_of(found[1] if is_layer else found)
        if self._pass.calls[layer] > 1:
            for k, each in enumerate(hidden):
                self._pass.following[_carried(layer, module, k)] = each.movedim(1, 0) if is_layer else each
            return found
        taken = []
        for k, each in enumerate(hidden):
            shape = (each.shape[0], *each.shape[2:]) if is_layer else tuple(each.shape[1:])
            part = self._pass.take(_carried(layer, module, k), shape)
            taken.append(part.movedim(0, 1) if is_layer else part)
        if not is_layer:
            return filled(found, taken)
        batch_first = sequence_of(module, arguments[0])[1]
        y = taken[0][-1]
        return (y[:, None] if batch_first else y[None]), filled(found[1], taken)

    def _shapes(self, module: nn.Module, hidden: list[Tensor]) -> list[tuple[int, ...]]:
        """Shapes of a cell's hidden tensors, batch removed."""
        if not kind_of(module):
            return [tuple(each.shape[1:]) for each in hidden]
        layers = (module.num_layers,) if isinstance(module, nn.RNNBase) else ()
        return [(*layers, size) for size in hidden_sizes(module)][: 2 if kind_of(module) == "lstm" else 1]

    def _cell_call(self, layer: str, module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        if kind_of(module):
            return self._given(layer, module, arguments)
        return type(module).forward(module, *arguments)

    def _through(self, name: str, layer: str, module: nn.Module, given: Any) -> Any:
        """A whole-sequence layer over the two steps, the state after the first kept."""
        values, batch_first = _sequence(layer, module, given)
        x = values if batch_first else values.transpose(0, 1)
        steps = [x[:, t] for t in range(x.shape[1])]
        last_h, last_c = [], []
        is_fed = self.form is Form.FED
        for k, (suffix,) in enumerate(suffixes(module)):
            h, c = self._take(name, module, k)
            for t, each in enumerate(steps):
                if not is_fed or t:
                    h, c = run_cell(module, suffix, each, h, c)
                steps[t] = h
                if t == int(is_fed):
                    self._put(name, module, k, h, c)
            last_h.append(h)
            last_c.append(c)
        y = torch.stack(steps, dim=1 if batch_first else 0)
        hn = torch.stack(last_h)
        found: Any = Packed(y, batch_first) if isinstance(given, Packed) else y
        return found, ((hn, torch.stack(last_c)) if kind_of(module) == "lstm" else hn)

    def _given(self, layer: str, module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        """One or two steps from the hidden state that the network hands over."""
        values, batch_first = _sequence(layer, module, arguments[0])
        hidden = hidden_of(arguments[1]) if len(arguments) > 1 else []
        if not isinstance(module, nn.RNNBase):
            if not hidden:
                hidden = [values.new_zeros(values.shape[0], hidden_sizes(module)[0])] * 2
            h, c = run_cell(module, "", values, hidden[0], hidden[-1])
            return (h, c) if kind_of(module) == "lstm" else h
        x = values if batch_first else values.transpose(0, 1)
        if not hidden:
            hidden = [x.new_zeros(module.num_layers, x.shape[0], size) for size in hidden_sizes(module)]
        steps = [x[:, t] for t in range(x.shape[1])]
        hs, cs = [], []
        for k, (suffix,) in enumerate(suffixes(module)):
            h, c = hidden[0][k], hidden[-1][k]
            for t, each in enumerate(steps):
                h, c = run_cell(module, suffix, each, h, c)
                steps[t] = h
            hs.append(h)
            cs.append(c)
        y = torch.stack(steps, dim=1 if batch_first else 0)
        found: Any = Packed(y, batch_first) if isinstance(arguments[0], Packed) else y
        return found, ((torch.stack(hs), torch.stack(cs)) if kind_of(module) == "lstm" else torch.stack(hs))

    def _whole(self, layer: str, module: nn.Module, arguments: tuple[Any, ...]) -> Any:
        """A layer over whole sequences, both directions where it has two."""
        values, batch_first = _sequence(layer, module, arguments[0])
        if not isinstance(module, nn.RNNBase):
            return type(module).forward(module, *arguments)
        hidden = hidden_of(arguments[1]) if len(arguments) > 1 else []
        x = values if batch_first else values.transpose(0, 1)
        ways = 2 if module.bidirectional else 1
        hs, cs = [], []
        for k in range(module.num_layers):
            zeros = x.new_zeros(ways, x.shape[0], module.hidden_size)
            h, c = (
                (hidden[0][ways * k : ways * (k + 1)], hidden[-1][ways * k : ways * (k + 1)])
                if hidden
                else (zeros, zeros)
            )
            x, h, c = self._layer(layer, module, k, x, h, c)
            hs.append(h)
            cs.append(c)
        y = x if batch_first else x.transpose(0, 1)
        found: Any = Packed(y, batch_first) if isinstance(arguments[0], Packed) else y
        hn = torch.cat(hs)
        return found, ((hn, torch.cat(cs)) if kind_of(module) == "lstm" else hn)


def _carried(layer: str, module: nn.Module, k: int) -> str:
    return f"{layer}.{'hc'[k]}" if kind_of(module) else f"{layer}.{k}"


def _sequence(layer: str, module: nn.Module, given: Any) -> tuple[Tensor, bool]:
    values, batch_first = sequence_of(module, given)
    if values.dim() != (3 if isinstance(module, nn.RNNBase) else 2):
        raise ExportError(Why.MIXES_ROWS, f"`{layer}` is given one sequence without a batch axis")
    return values, batch_first
