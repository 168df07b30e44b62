"""A recurrent layer of PyTorch, of any kind, as one opaque call and exactly one ONNX node (decision 0001)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxscript
import torch
from torch import Tensor, nn

from cellar_models.recurrent import _GATES, OPSET

KINDS = ("rnn", "lstm", "gru")
LAYERS: dict[type[nn.Module], str] = {nn.RNN: "rnn", nn.LSTM: "lstm", nn.GRU: "gru"}
CELLS: dict[type[nn.Module], str] = {nn.RNNCell: "rnn", nn.LSTMCell: "lstm", nn.GRUCell: "gru"}


def kind_of(module: nn.Module) -> str:
    """rnn, lstm or gru of a layer or cell as PyTorch computes it; empty of anything else."""
    for known, kind in (*LAYERS.items(), *CELLS.items()):
        # a subclass with a forward of its own computes something else
        if isinstance(module, known) and type(module).forward is known.forward:
            return kind
    return ""


@torch.library.custom_op("cellar::layer", mutates_args=())
def layer_op(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor, c: Tensor, kind: int, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer: x [batch, time, input], h, c [directions, batch, hidden]. Only ever traced for export, never run."""
    raise NotImplementedError("only for export")


@layer_op.register_fake
def _(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Tensor, c: Tensor, kind: int, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape[0], x.shape[1], r.shape[0] * r.shape[2])
    return y, torch.empty_like(h), torch.empty_like(c)


_op = onnxscript.values.Opset("", OPSET)


def _layer_onnx(x: Any, w: Any, r: Any, b: Any, h: Any, c: Any, kind: int, relu: bool) -> Any:
    directions, _, hidden = r.shape
    more: dict[str, Any] = {"hidden_size": int(hidden)}
    if directions == 2:
        more["direction"] = "bidirectional"
    if relu:
        more["activations"] = ["Relu"] * int(directions)
    time_first = _op.Transpose(x, perm=[1, 0, 2])
    if kind == 1:
        y, hn, cn = _op.LSTM(time_first, w, r, b, None, h, c, None, **more)
    elif kind == 2:
        y, hn = _op.GRU(time_first, w, r, b, None, h, linear_before_reset=1, **more)
        cn = c
    else:
        y, hn = _op.RNN(time_first, w, r, b, None, h, **more)
        cn = c
    # [time, directions, batch, hidden] -> [batch, time, directions * hidden]
    if directions == 1:
        return _op.Transpose(_op.Squeeze(y, [1]), perm=[1, 0, 2]), hn, cn
    return _op.Reshape(_op.Transpose(y, perm=[2, 0, 1, 3]), [0, 0, -1]), hn, cn


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.cellar.layer.default: _layer_onnx}


def suffixes(module: nn.Module) -> list[list[str]]:
    """Suffixes of the weights' names, by layer and direction: [["_l0"], ["_l1"]]; [[""]] of a cell."""
    if not isinstance(module, nn.RNNBase):
        return [[""]]
    ways = ("", "_reverse") if module.bidirectional else ("",)
    return [[f"_l{k}{way}" for way in ways] for k in range(module.num_layers)]


def hidden_sizes(module: nn.Module) -> tuple[int, int]:
    """Numbers in h, which an LSTM may project, and in c."""
    assert isinstance(module, nn.RNNBase | nn.RNNCellBase)
    projected = module.proj_size if isinstance(module, nn.RNNBase) else 0
    return projected or module.hidden_size, module.hidden_size


def weights(module: nn.Module, suffix: str) -> list[Tensor]:
    """weight_ih, weight_hh, the two biases where there are some, and weight_hr where the layer projects."""
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    if getattr(module, "proj_size", 0):
        names.append("weight_hr")
    return [getattr(module, name + suffix) for name in names]


def onnx_weights(module: nn.Module, layer: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """W [directions, gates * hidden, input], R [directions, gates * hidden, hidden] and B of one layer, gates in
    ONNX's order."""
    gates = _GATES[kind_of(module)]

    def ordered(tensor: Tensor) -> Tensor:
        blocks = tensor.detach().float().chunk(len(gates))
        return torch.cat([blocks[g] for g in gates])

    made: list[list[Tensor]] = [[], [], []]
    for suffix in layer:
        w, r, *biases = weights(module, suffix)
        made[0].append(ordered(w))
        made[1].append(ordered(r))
        zeros = torch.zeros(2 * w.shape[0])
        made[2].append(torch.cat([ordered(bias) for bias in biases]) if biases else zeros)
    w, r, b = (torch.stack(tensors).clone() for tensors in made)
    return w, r, b


def run_layer(module: nn.Module, layer: list[str], x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One layer by PyTorch's own kernel: x [batch, time, input], h, c [directions, batch, size] -> y, h', c'."""
    kind = kind_of(module)
    flat = [tensor for suffix in layer for tensor in weights(module, suffix)]
    rest = (flat, bool(module.bias), 1, 0.0, False, len(layer) == 2, True)
    if kind == "lstm":
        y, h, c = torch._VF.lstm(x, (h.contiguous(), c.contiguous()), *rest)
        return y, h, c
    name = "gru" if kind == "gru" else f"rnn_{module.nonlinearity}"
    y, h = getattr(torch._VF, name)(x, h.contiguous(), *rest)
    return y, h, c


def run_cell(module: nn.Module, suffix: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step by the equations, projections included: x [batch, input], h, c [batch, size] -> h', c'."""
    w, r, *rest = weights(module, suffix)
    biases = rest[:2] if module.bias else [None, None]
    kind = kind_of(module)
    linear = torch.nn.functional.linear
    a, b = linear(x, w, biases[0]), linear(h, r, biases[1])
    if kind == "rnn":
        return (torch.relu(a + b) if module.nonlinearity == "relu" else torch.tanh(a + b)), c
    if kind == "gru":
        (ar, az, an), (br, bz, bn) = a.chunk(3, 1), b.chunk(3, 1)
        z = torch.sigmoid(az + bz)
        return (1 - z) * torch.tanh(an + torch.sigmoid(ar + br) * bn) + z * h, c
    i, f, g, o = (a + b).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (linear(h, rest[-1]) if getattr(module, "proj_size", 0) else h), c
