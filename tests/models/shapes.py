"""Networks as people write them, each with an example and what becomes of it: a form, or a named reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Plain(nn.Module):
    """Tutorial style: zeros made in forward, dropout, a head for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True, dropout=0.3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(2, x.size(0), 6)
        c0 = torch.zeros(2, x.size(0), 6)
        out, _ = self.lstm(x, (h0, c0))
        return self.head(out)


class TimeFirst(nn.Module):
    """batch_first=False, and the input too: [time, batch, features]."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x)
        return self.head(out)


class Turned(nn.Module):
    """batch_first=False inside, batch first outside; a ReLU RNN without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 6, nonlinearity="relu", bias=False)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x.permute(1, 0, 2))
        return self.head(out.permute(1, 0, 2))


class LastStep(nn.Module):
    """Many-to-one by out[:, -1]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3), nn.Softmax(dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x, None)
        return self.head(out[:, -1])


class LastHidden(nn.Module):
    """Many-to-one by h_n[-1] of the second of two different layers, word ids in."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.lower = nn.LSTM(5, 6, batch_first=True)
        self.upper = nn.GRU(6, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.lower(self.embedding(ids))
        _, hidden = self.upper(out)
        return self.head(hidden[-1])


class LastCell(nn.Module):
    """Many-to-one by c_n, which no ONNX node gives for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, c) = self.lstm(x)
        return torch.cat([h[-1], c[-1]], dim=1)


class Packs(nn.Module):
    """Packed sequences, and the last output of each by its length."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = self.lstm(packed)
        out, lengths = pad_packed_sequence(out, batch_first=True)
        return self.head(out)


class PacksToOne(nn.Module):
    """Packed, time first inside, the last hidden state out."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x.transpose(0, 1), lengths.cpu(), enforce_sorted=False)
        _, hidden = self.gru(packed)
        return self.head(hidden.squeeze(0))


class Cells(nn.Module):
    """Lists of cells and of their states, a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(4, 6), nn.LSTMCell(6, 5)])
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        states = [(torch.zeros(x.size(0), 6),) * 2, (torch.zeros(x.size(0), 5),) * 2]
        outputs = []
        for t in range(x.size(1)):
            value = x[:, t]
            for k, cell in enumerate(self.cells):
                states[k] = cell(value, states[k])
                value = states[k][0]
            outputs.append(self.head(value))
        return torch.stack(outputs, dim=1)


class NormalisedCells(nn.Module):
    """A GRU cell whose hidden state is normalised between steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 6)
        outputs = []
        for value in x.unbind(1):
            h = self.norm(self.cell(value, h))
            outputs.append(h)
        return self.head(torch.stack(outputs, 1))


class LayerNormGRUCell(nn.Module):
    """A GRU cell of one's own, with layer norm on the gates."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.x2h = nn.Linear(input_size, 3 * hidden_size)
        self.h2h = nn.Linear(hidden_size, 3 * hidden_size)
        self.norm_x, self.norm_h = nn.LayerNorm(3 * hidden_size), nn.LayerNorm(3 * hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        xr, xz, xn = self.norm_x(self.x2h(x)).chunk(3, -1)
        hr, hz, hn = self.norm_h(self.h2h(h)).chunk(3, -1)
        z = torch.sigmoid(xz + hz)
        return (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h


class LayerNormGRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = LayerNormGRUCell(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), self.cell.hidden_size)
        outputs = []
        for t in range(x.size(1)):
            h = self.cell(x[:, t], h)
            outputs.append(h)
        return self.head(torch.stack(outputs, dim=1))


class FedBack(nn.Module):
    """Its own last output is part of the next input."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 6)
        self.mix = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 6)
        outputs = []
        for t in range(x.size(1)):
            h = self.cell(torch.tanh(self.mix(torch.cat([x[:, t], h], dim=1))), h)
            outputs.append(h)
        return torch.stack(outputs, dim=1)


class LayerInLoop(nn.Module):
    """nn.LSTM called a step at a time with its state handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        outputs = []
        for t in range(x.size(1)):
            out, state = self.lstm(x[:, t : t + 1], state)
            outputs.append(self.head(out))
        return torch.cat(outputs, dim=1)


class Skips(nn.Module):
    """Residual connections around layers of several kinds, and gates between them."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.LSTM(4, 4, batch_first=True)
        self.upper = nn.RNN(4, 4, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = x + self.lower(x)[0]
        second = first * torch.sigmoid(self.upper(functional.gelu(first))[0])
        return self.head(torch.cat([x, second], dim=-1))


class LearnedStart(nn.Module):
    """First hidden states that were trained."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True)
        self.h0 = nn.Parameter(torch.randn(2, 1, 6))
        self.c0 = nn.Parameter(torch.randn(2, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.size(0)
        out, _ = self.lstm(x, (self.h0.expand(-1, rows, -1).contiguous(), self.c0.repeat(1, rows, 1)))
        return out


class Projects(nn.Module):
    """proj_size."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, proj_size=3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Bidirectional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


class TiedWords(nn.Module):
    """A language model, its embedding and head the same weights, logits flattened: [batch * time, words]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.decoder = nn.Linear(6, 11)
        self.decoder.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.lstm(self.embedding(ids))
        return functional.log_softmax(self.decoder(out).reshape(-1, 11), dim=1)


class SharedLayer(nn.Module):
    """The same layer called twice: the weights are shared, the hidden states are not."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        once, _ = self.rnn(x)
        twice, _ = self.rnn(once)
        return twice


class CausalConvolution(nn.Module):
    """Conv1d before the LSTM, padded on the left."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 5, kernel_size=3, dilation=2)
        self.norm = nn.BatchNorm1d(5)
        self.lstm = nn.LSTM(5, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        value = functional.pad(x.transpose(1, 2), (4, 0))
        value = torch.relu(self.norm(self.conv(value))).transpose(1, 2)
        return self.lstm(value)[0]


class ChoppedConvolution(nn.Module):
    """Padded on both sides, the right end cut off; two in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 5, kernel_size=4, padding=3)
        self.two = nn.Conv1d(5, 5, kernel_size=2, padding=1)
        self.gru = nn.GRU(5, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        value = torch.relu(self.one(x.transpose(1, 2))[:, :, :-3])
        value = self.two(value)[..., :-1].transpose(1, 2)
        return self.head(self.gru(value)[0][:, -1, :])


class CentredConvolution(nn.Module):
    def __init__(self, padding: Any = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 5, kernel_size=3, padding=padding, stride=stride)
        self.lstm = nn.LSTM(5, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.conv(x.transpose(1, 2)).transpose(1, 2))[0]


class Attention(nn.Module):
    """Dot-product attention over what was seen so far, causally masked."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        scores = out @ out.transpose(1, 2)
        mask = torch.ones_like(scores).triu(1).bool()
        weights = torch.softmax(scores.masked_fill(mask, -1e9), dim=-1)
        return self.head(torch.cat([out, weights @ out], dim=-1))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.attention(out, out, out, need_weights=False)[0]


class Averages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0].mean(dim=1)


class SoftmaxOverTime(nn.Module):
    """The usual slip: dim=1 of [batch, time, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.lstm(x)[0], dim=1)


class Backwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.flip(1))[0].flip(1)


class HandsState(nn.Module):
    """Takes its state and returns it, and can do without."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        out, state = self.lstm(x, state)
        return self.head(out), state


class OwnRecurrence(nn.Module):
    """A recurrence written out, with running sums beside it: (y, (h, (total, count)))."""

    def __init__(self) -> None:
        super().__init__()
        self.x2h = nn.Linear(4, 6)
        self.h2h = nn.Linear(6, 6)

    def forward(self, x: Tensor, state: Any) -> Any:
        h, (total, count) = state
        outputs = []
        for t in range(x.shape[1]):
            total, count = total + x[:, t], count + 1
            h = torch.tanh(self.x2h(x[:, t] - total / count) + self.h2h(h))
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h, (total, count))


class HiddenRecurrence(nn.Module):
    """The same written out without handing the state over."""

    def __init__(self) -> None:
        super().__init__()
        self.x2h = nn.Linear(4, 6)
        self.h2h = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 6)
        outputs = []
        for t in range(x.size(1)):
            h = torch.tanh(self.x2h(x[:, t]) + self.h2h(h))
            outputs.append(h)
        return torch.stack(outputs, dim=1)


class KeepsAttribute(nn.Module):
    """The hidden state kept as an attribute between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.hidden: Any = None

    def forward(self, x: Tensor) -> Tensor:
        out, self.hidden = self.lstm(x, self.hidden)
        return out


class RandomStart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x, torch.randn(1, x.size(0), 6))[0]


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(4, 6, batch_first=True)
        self.decoder = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        return self.decoder(x, state)[0]


class BatchAverage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x - x.mean(dim=0, keepdim=True))[0]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Dictionary(nn.Module):
    """Several outputs by name, channels before time: {"logits": [batch, classes, time], ...}."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out, _ = self.lstm(x)
        return {"features": out, "logits": self.head(out).transpose(1, 2)}


class Pcm(nn.Module):
    """PCM frames of 16 samples, int16, scaled and windowed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.bands = nn.Linear(16, 8, bias=False)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.float() / 32768.0
        bands = torch.log1p(self.bands(frames * torch.hann_window(16)).square())
        return self.head(self.lstm(bands)[0][:, -1])


class FixedBatch(nn.Module):
    """The hidden state made once, for the batch size of the training."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.state = (torch.zeros(1, 2, 6), torch.zeros(1, 2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x, self.state)[0]


class PerSecond(nn.Module):
    """[batch, time] numbers in and out, no feature axis."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 6, batch_first=True)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x.unsqueeze(-1))[0]).squeeze(-1)


class TimeFirstLast(nn.Module):
    """Time first, many-to-one by the last hidden states of both layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x)
        return self.head(torch.cat((h[-2], h[-1]), dim=1))


def weight_normed() -> nn.Module:
    """Weights that are computed, as a training leaves them: parts of a graph, which do not copy as they are."""
    network = LastStep()
    nn.utils.parametrizations.weight_norm(network.lstm, "weight_hh_l0")
    network(floats()).sum().backward()
    return network


class CausalNetwork(nn.Module):
    """No recurrent layer: a causal convolution alone keeps something."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ConstantPad1d((2, 0), 0.0)
        self.conv = nn.Conv1d(4, 6, 3)
        self.head = nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(self.pad(x.transpose(1, 2))))).transpose(1, 2)


class OneStep(nn.Module):
    """A network of one step: x [batch, 4], h, c -> y, h, c."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.cell(x, (h, c))
        return self.head(h), h, c


def stepped(network: nn.Module, x: Tensor) -> Tensor:
    h = c = torch.zeros(len(x), 6)
    outputs = []
    for t in range(x.shape[1]):
        y, h, c = network(x[:, t], h, c)
        outputs.append(y)
    return torch.stack(outputs, 1)


class AttentionPooling(nn.Module):
    """The usual additive attention in front of a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.score = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return (torch.softmax(self.score(out), dim=1) * out).sum(1)


class Differences(nn.Module):
    """The input less the one before it, by slices."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x - functional.pad(x, (0, 0, 1, 0))[:, :-1])[0]


class Positions(nn.Module):
    """An embedding of the step's number."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.positions = nn.Embedding(100, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x + self.positions(torch.arange(x.size(1))))[0]


class PerChannel(nn.Module):
    """One LSTM over each channel by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows, steps, channels = x.shape
        out, _ = self.lstm(x.transpose(1, 2).reshape(rows * channels, steps, 1))
        return out.reshape(rows, channels, steps, 6).transpose(1, 2).reshape(rows, steps, -1)


class SharedCell(nn.Module):
    """One cell for two layers of a step, its states normalised between steps or not."""

    def __init__(self, is_normalised: bool) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)
        self.norm: nn.Module = nn.LayerNorm(4) if is_normalised else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        lower = upper = torch.zeros(x.size(0), 4)
        outputs = []
        for t in range(x.size(1)):
            lower = self.norm(self.cell(x[:, t], lower))
            upper = self.norm(self.cell(lower, upper))
            outputs.append(upper)
        return torch.stack(outputs, dim=1)


class ReadsPacked(nn.Module):
    """Works on the flat data inside of a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = self.lstm(packed)
        return self.head(pad_packed_sequence(out._replace(data=torch.tanh(out.data)), batch_first=True)[0])


class Total(nn.Module):
    """One number for the whole batch, as in a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0].sum()


class Branches(nn.Module):
    """Python asks for a value: which way it goes depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return out if float(out.abs().max()) < 2.0 else out.clamp(-2, 2)


def floats() -> Tensor:
    return torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))


def ids(size: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, size, (2, 6), generator=torch.Generator().manual_seed(1))


def padded() -> Any:
    return floats(), torch.tensor([6, 6])


Shape = tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any], str]
SHAPES: dict[str, Shape] = {
    "plain": (Plain, floats, {}, "FOLDED"),
    "time-first": (TimeFirst, lambda: floats().transpose(0, 1), {}, "FOLDED"),
    "turned": (Turned, floats, {}, "FOLDED"),
    "last-step": (LastStep, floats, {"labels": ["a", "b", "c"]}, "FOLDED"),
    "last-hidden": (LastHidden, ids(20), {}, "FOLDED"),
    "last-cell": (LastCell, floats, {}, "LOOP"),
    "packs": (Packs, padded, {}, "FOLDED"),
    "packs-to-one": (PacksToOne, padded, {}, "FOLDED"),
    "cells": (Cells, floats, {}, "FOLDED"),
    "normalised-cells": (NormalisedCells, floats, {}, "LOOP"),
    "layer-norm-gru": (LayerNormGRU, floats, {}, "LOOP"),
    "layer-norm-gru-named": (LayerNormGRU, floats, {"cells": (LayerNormGRUCell,)}, "LOOP"),
    "fed-back": (FedBack, floats, {}, "FED"),
    "layer-in-loop": (LayerInLoop, floats, {}, "FOLDED"),
    "skips": (Skips, floats, {}, "FOLDED"),
    "learned-start": (LearnedStart, floats, {}, "FOLDED"),
    "projects": (Projects, floats, {}, "LOOP"),
    "bidirectional": (Bidirectional, floats, {}, "WHOLE"),
    "tied-words": (TiedWords, ids(11), {}, "FOLDED"),
    "shared-layer": (SharedLayer, floats, {}, "FOLDED"),
    "causal-convolution": (CausalConvolution, floats, {}, "FOLDED"),
    "chopped-convolution": (ChoppedConvolution, floats, {}, "FOLDED"),
    "hands-state": (HandsState, floats, {}, "FOLDED"),
    "given-state": (
        HandsState,
        floats,
        {"state": lambda: (torch.zeros(2, 2, 6), torch.zeros(2, 2, 6))},
        "FOLDED",
    ),
    "own-recurrence": (
        OwnRecurrence,
        floats,
        {"state": lambda: (torch.zeros(2, 6), (torch.ones(2, 4), torch.ones(2, 1)))},
        "GIVEN",
    ),
    "keeps-attribute": (KeepsAttribute, floats, {}, "FOLDED"),
    "dictionary": (Dictionary, floats, {"output": "logits"}, "FOLDED"),
    "pcm": (Pcm, lambda: torch.zeros(2, 6, 16, dtype=torch.int16), {}, "FOLDED"),
    "per-second": (PerSecond, lambda: floats()[:, :, 0], {}, "FOLDED"),
    "time-first-last": (TimeFirstLast, lambda: floats().transpose(0, 1), {}, "FOLDED"),
    "weight-normed": (weight_normed, floats, {}, "FOLDED"),
    "causal-network": (CausalNetwork, floats, {}, "FOLDED"),
    "one-step": (
        OneStep,
        lambda: floats()[:, 0],
        {"single_step": True, "state": lambda: (torch.zeros(2, 6), torch.zeros(2, 6))},
        "FOLDED",
    ),
    "shared-cell": (lambda: SharedCell(False), floats, {}, "FOLDED"),
    "attention-whole": (SelfAttention, floats, {"whole_only": True}, "WHOLE"),
    "attention": (Attention, floats, {}, "ATTENTION"),
    "shared-normalised-cell": (lambda: SharedCell(True), floats, {}, "LOOP_ORDER"),
    "reads-packed": (ReadsPacked, padded, {}, "PACKED_ELSEWHERE"),
    "total": (Total, floats, {}, "OUTPUT_LAYOUT"),
    "branches": (Branches, floats, {}, "EXPORTER"),
    "attention-pooling": (AttentionPooling, floats, {}, "ATTENTION"),
    "differences": (Differences, floats, {}, "SHIFTS"),
    "positions": (Positions, floats, {}, "COUNTS_STEPS"),
    "per-channel": (PerChannel, floats, {}, "FANS_OUT"),
    "self-attention": (SelfAttention, floats, {}, "ATTENTION"),
    "centred-convolution": (CentredConvolution, floats, {}, "LOOKS_AHEAD"),
    "same-convolution": (lambda: CentredConvolution("same"), floats, {}, "LOOKS_AHEAD"),
    "shortening-convolution": (lambda: CentredConvolution(0), floats, {}, "CHANGES_LENGTH"),
    "strided-convolution": (lambda: CentredConvolution(1, 2), floats, {}, "CHANGES_LENGTH"),
    "averages": (Averages, floats, {}, "POOLS_OVER_TIME"),
    "softmax-over-time": (SoftmaxOverTime, floats, {}, "NORMALISES_OVER_TIME"),
    "backwards": (Backwards, floats, {}, "NOT_CAUSAL"),
    "hidden-recurrence": (HiddenRecurrence, floats, {}, "HIDDEN_LOOP"),
    "random-start": (RandomStart, floats, {}, "RANDOM"),
    "encoder-decoder": (EncoderDecoder, floats, {}, "START_FROM_INPUT"),
    "batch-average": (BatchAverage, floats, {}, "MIXES_ROWS"),
    "mlp": (Mlp, floats, {}, "NO_STATE"),
    "several-outputs": (Dictionary, floats, {}, "SEVERAL_OUTPUTS"),
    "fixed-batch": (FixedBatch, floats, {}, "FORWARD_FAILED"),
}


def _prefixes(module: nn.Module, x: Tensor) -> Tensor:
    """What a many-to-one network gives after each step."""
    return torch.stack([module(x[:, :t]) for t in range(1, x.shape[1] + 1)], dim=1)


def _lengths(x: Tensor) -> Tensor:
    return torch.full((x.shape[0],), x.shape[1])


# What a network gives for whole sequences x [batch, time, ...], as [batch, time, ...], where it is not simply called.
TRUTHS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "time-first": lambda net, x: net(x.transpose(0, 1)).transpose(0, 1),
    "last-step": _prefixes,
    "weight-normed": _prefixes,
    "one-step": stepped,
    "time-first-last": lambda net, x: _prefixes(lambda part: net(part.transpose(0, 1)), x),
    "last-hidden": _prefixes,
    "last-cell": _prefixes,
    "pcm": _prefixes,
    "chopped-convolution": _prefixes,
    "packs": lambda net, x: net(x, _lengths(x)),
    "packs-to-one": lambda net, x: _prefixes(lambda part: net(part, _lengths(part)), x),
    "tied-words": lambda net, x: net(x).reshape(*x.shape, 11),
    "hands-state": lambda net, x: net(x)[0],
    "given-state": lambda net, x: net(x)[0],
    "own-recurrence": lambda net, x: net(x, (torch.zeros(len(x), 6), (torch.ones(len(x), 4), torch.ones(len(x), 1))))[
        0
    ],
    "dictionary": lambda net, x: net(x)["logits"].transpose(1, 2),
}
