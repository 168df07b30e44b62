"""The cell equations in NumPy float64: what every other form of a network is held to.

Vanilla RNN (Elman, 1990): h_t = tanh(W_xh x_t + b_xh + W_hh h_{t-1} + b_hh).
LSTM (Hochreiter and Schmidhuber, 1997; forget gate by Gers et al., 2000):
  i, f, o = sigmoid(W x_t + U h_{t-1} + b) each, g = tanh(the same), c_t = f c_{t-1} + i g, h_t = o tanh(c_t).
GRU (Cho et al., 2014, with the reset after the product as in PyTorch and cuDNN):
  r, z = sigmoid(...), n = tanh(W x_t + b + r (U h_{t-1} + b')), h_t = (1 - z) n + z h_{t-1}.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from cellar_models.recurrent import Recurrent


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-a))


def softmax(a: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rnn_cell(x: np.ndarray, h: np.ndarray, w: np.ndarray, u: np.ndarray, b: np.ndarray, b2: np.ndarray) -> np.ndarray:
    """One step: x [batch, input], h [batch, hidden] -> h'."""
    return np.tanh(x @ w.T + b + h @ u.T + b2)


def lstm_cell(
    x: np.ndarray, h: np.ndarray, c: np.ndarray, w: np.ndarray, u: np.ndarray, b: np.ndarray, b2: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One step: x [batch, input], h, c [batch, hidden] -> h', c'. Gates in the order input, forget, cell, output."""
    i, f, g, o = np.split(x @ w.T + b + h @ u.T + b2, 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_cell(x: np.ndarray, h: np.ndarray, w: np.ndarray, u: np.ndarray, b: np.ndarray, b2: np.ndarray) -> np.ndarray:
    """One step: x [batch, input], h [batch, hidden] -> h'. Gates in the order reset, update, new."""
    xr, xz, xn = np.split(x @ w.T + b, 3, axis=1)
    hr, hz, hn = np.split(h @ u.T + b2, 3, axis=1)
    z = sigmoid(xz + hz)
    return (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h


def recurrent(module: Recurrent, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All layers of a Recurrent unrolled over time: x [batch, time, input], state [batch, S] -> y, state'."""
    n, p = module.hidden_size, module.per_layer
    following = []
    for k in range(module.num_layers):
        w, u, b, b2 = (
            getattr(module.layers, f"{name}_l{k}").detach().numpy().astype(np.float64)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = state[:, k * p : k * p + n]
        c = state[:, k * p + n : k * p + 2 * n]
        outputs = []
        for t in range(x.shape[1]):
            if module.kind == "rnn":
                h = rnn_cell(x[:, t], h, w, u, b, b2)
            elif module.kind == "gru":
                h = gru_cell(x[:, t], h, w, u, b, b2)
            else:
                h, c = lstm_cell(x[:, t], h, c, w, u, b, b2)
            outputs.append(h)
        x = np.stack(outputs, axis=1)
        following += [h, c] if module.kind == "lstm" else [h]
    return x, np.concatenate(following, axis=1)


def linear(module: nn.Linear, x: np.ndarray) -> np.ndarray:
    """An nn.Linear."""
    return x @ module.weight.detach().numpy().astype(np.float64).T + module.bias.detach().numpy()
