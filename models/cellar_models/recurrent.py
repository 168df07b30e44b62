"""nn.RNN, nn.LSTM and nn.GRU over one packed state row, and their translation to exactly one ONNX node a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxscript
import torch
from cellar_proto.v1.manifest_pb2 import StatePart
from torch import Tensor, nn

OPSET = 18
CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
# Order of the gates' blocks: PyTorch's rows taken in this order are ONNX's.
_GATES = {"rnn": [0], "lstm": [0, 3, 1, 2], "gru": [1, 0, 2]}


@torch.library.custom_op("cellar::recurrent", mutates_args=())
def recurrent_op(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor, c: Tensor, kind: int, hidden_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One recurrent layer as one opaque call: only ever traced for export, never run."""
    raise NotImplementedError("only for export")


@recurrent_op.register_fake
def _(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor, c: Tensor, kind: int, hidden_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape[0], x.shape[1], hidden_size), torch.empty_like(h), torch.empty_like(c)


_op = onnxscript.values.Opset("", OPSET)


def recurrent_onnx(x: Any, w: Any, r: Any, b: Any, h: Any, c: Any, kind: int, hidden_size: int) -> Any:
    """The same layer in ONNX: RNN, LSTM or GRU (linear_before_reset, as PyTorch computes it)."""
    time_first = _op.Transpose(x, perm=[1, 0, 2])
    h0 = _op.Unsqueeze(h, [0])
    if kind == 1:
        y, hn, cn = _op.LSTM(time_first, w, r, b, None, h0, _op.Unsqueeze(c, [0]), None, hidden_size=hidden_size)
        c = _op.Squeeze(cn, [0])
    elif kind == 2:
        y, hn = _op.GRU(time_first, w, r, b, None, h0, hidden_size=hidden_size, linear_before_reset=1)
    else:
        y, hn = _op.RNN(time_first, w, r, b, None, h0, hidden_size=hidden_size)
    return _op.Transpose(_op.Squeeze(y, [1]), perm=[1, 0, 2]), _op.Squeeze(hn, [0]), c


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.cellar.recurrent.default: recurrent_onnx}


class Recurrent(nn.Module):
    """`num_layers` recurrent layers over a state row of h (and, for an LSTM, c) of each layer in turn.

    kind: "rnn", "lstm" or "gru". forward(x: float32 [batch, time, input_size], state: float32 [batch, S]) gives
    y: float32 [batch, time, hidden_size] and the next state. Recurrent weights start orthogonal (Saxe et al., 2014),
    an LSTM's forget-gate bias at 1 (Jozefowicz et al., 2015).
    """

    def __init__(self, kind: str, input_size: int, hidden_size: int, num_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.kind, self.hidden_size, self.num_layers = kind, hidden_size, num_layers
        self.layers = CELLS[kind](input_size, hidden_size, num_layers, batch_first=True, dropout=dropout)
        self.per_layer = 2 * hidden_size if kind == "lstm" else hidden_size
        self.state_size = num_layers * self.per_layer
        self.is_exporting = False
        for name, weight in self.layers.named_parameters():
            if name.startswith("weight_hh"):
                for block in weight.data.chunk(len(_GATES[kind])):
                    nn.init.orthogonal_(block)
            elif name.startswith("bias"):
                nn.init.zeros_(weight)
                if kind == "lstm" and name.startswith("bias_ih"):
                    weight.data[hidden_size : 2 * hidden_size] = 1.0

    def parts(self, prefix: str, offset: int = 0) -> list[StatePart]:
        """Names and places of the state's parts in the row, from `offset` on."""
        parts = []
        for k in range(self.num_layers):
            for j, letter in enumerate("hc" if self.kind == "lstm" else "h"):
                at = offset + k * self.per_layer + j * self.hidden_size
                parts.append(StatePart(name=f"{prefix}.{k}.{letter}", offset=at, shape=[self.hidden_size]))
        return parts

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        n, p = self.hidden_size, self.per_layer
        if self.is_exporting:
            return self._export(x, state)
        h = torch.stack([state[:, k * p : k * p + n] for k in range(self.num_layers)])
        if self.kind == "lstm":
            c = torch.stack([state[:, k * p + n : k * p + 2 * n] for k in range(self.num_layers)])
            y, (h, c) = self.layers(x, (h, c))
            return y, torch.cat([part for k in range(self.num_layers) for part in (h[k], c[k])], dim=1)
        y, h = self.layers(x, h)
        return y, torch.cat([h[k] for k in range(self.num_layers)], dim=1)

    def _export(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        n, p = self.hidden_size, self.per_layer
        kind = ("rnn", "lstm", "gru").index(self.kind)
        following = []
        for k in range(self.num_layers):
            h = state[:, k * p : k * p + n]
            c = state[:, k * p + n : k * p + 2 * n] if self.kind == "lstm" else h
            w, r, b = self._exported(k)
            x, h, c = torch.ops.cellar.recurrent(x, w, r, b, h, c, kind, n)
            following += [h, c] if self.kind == "lstm" else [h]
        return x, torch.cat(following, dim=1)

    def prepare_export(self) -> None:
        """Lays the weights out as ONNX wants them, as buffers, and switches `forward` to the exported form."""
        for k in range(self.num_layers):
            for name, tensors in (
                ("w", [getattr(self.layers, f"weight_ih_l{k}")]),
                ("r", [getattr(self.layers, f"weight_hh_l{k}")]),
                ("b", [getattr(self.layers, f"bias_ih_l{k}"), getattr(self.layers, f"bias_hh_l{k}")]),
            ):
                gates = _GATES[self.kind]
                blocks = [t.detach().chunk(len(gates))[g] for t in tensors for g in gates]
                self.register_buffer(f"onnx_{name}{k}", torch.cat(blocks)[None].clone(), persistent=False)
        self.is_exporting = True

    def _exported(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        return getattr(self, f"onnx_w{k}"), getattr(self, f"onnx_r{k}"), getattr(self, f"onnx_b{k}")
