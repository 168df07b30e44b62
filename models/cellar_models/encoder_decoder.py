"""The network of translate: an encoder, and a decoder that attends to it over the state row.

The encoder's outputs lie in the state row, each in the slot of its position, beside how many there are. So a source
sentence may come in any cuts, and a session that is forked carries its own copy of what it attends to. Attention as in
Luong et al., EMNLP 2015 ("general", global), between two recurrent layers of the decoder as in Wu et al., 2016.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from cellar_proto.v1.manifest_pb2 import (
    EMISSIONS,
    MANY_TO_MANY_ENCODER_DECODER,
    Generation,
    Manifest,
    StatePart,
    StepSpec,
)
from cellar_proto.v1.tensor_pb2 import FLOAT32, INT64
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import linear

from cellar_models import oracle
from cellar_models.network import Network
from cellar_models.pieces import BEGIN, END
from cellar_models.recurrent import Recurrent


def _piece(tokenizer: Tokenizer, i: int) -> str:
    """The text of one piece, as it is emitted."""
    piece = tokenizer.id_to_token(i)
    assert piece is not None
    return piece.replace("\u2581", " ")


class Translate(Network):
    """x: int64 [batch, time] ids of target pieces -> y: float32 [batch, time, V] logits of the next piece.

    prime(condition: int64 [batch, time] ids of source pieces) takes in the source, which ends with an end id. The row:
    h of the first layer, which the encoder leaves to the decoder; h of the second; how many source pieces there are;
    the encoder's outputs, slot by slot. What comes after `max_source` pieces has no slot.
    """

    name = "translate"
    has_prime = True
    is_prime_recurrent = True

    def __init__(
        self,
        source: Tokenizer,
        target: Tokenizer,
        *,
        embedding_size: int = 96,
        hidden_size: int = 192,
        max_source: int = 24,
        dropout: float = 0.3,
        attends: bool = True,
    ) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.max_source, self.hidden_size, self.attends = max_source, hidden_size, attends
        n = hidden_size
        self.source_embedding = nn.Embedding(source.get_vocab_size(), embedding_size)
        self.embedding = nn.Embedding(target.get_vocab_size(), embedding_size)
        for embedding in (self.source_embedding, self.embedding):
            nn.init.normal_(embedding.weight, std=embedding_size**-0.5)
        self.encoder = Recurrent("gru", embedding_size, n)
        self.first = Recurrent("gru", embedding_size, n)
        self.query = nn.Linear(n, n)
        self.second = Recurrent("gru", 2 * n, n)
        self.readout = nn.Linear(3 * n, embedding_size)
        self.bias = nn.Parameter(torch.zeros(target.get_vocab_size()))
        self.dropout = nn.Dropout(dropout)
        self.state_size = 2 * n + 1 + max_source * n

    def _slots(self) -> Tensor:
        return torch.arange(self.max_source, dtype=torch.float32)

    def prime(self, condition: Tensor, state: Tensor) -> Tensor:
        n = self.hidden_size
        count, memory = state[:, 2 * n : 2 * n + 1], state[:, 2 * n + 1 :].unflatten(1, (self.max_source, n))
        y, h = self.encoder(self.dropout(self.source_embedding(condition)), state[:, :n])
        # which slot each step's output goes to: a product with zeros and one one is exact, however the source is cut
        at = count + torch.cumsum(torch.ones_like(condition, dtype=torch.float32), dim=1) - 1
        written = (self._slots()[None, :, None] == at[:, None, :]).to(torch.float32)  # [batch, slots, time]
        memory = memory + written @ y
        return torch.cat([h, state[:, n : 2 * n], at[:, -1:] + 1, memory.flatten(1)], dim=1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        n = self.hidden_size
        count, memory = state[:, 2 * n : 2 * n + 1], state[:, 2 * n + 1 :].unflatten(1, (self.max_source, n))
        low, h = self.first(self.dropout(self.embedding(x)), state[:, :n])
        scores = self._products(self.query(low), memory)  # [batch, time, slots]
        is_empty = (self._slots()[None, None, :] >= count[:, None, :]).to(torch.float32)
        weights = torch.softmax(scores - 1e9 * is_empty, dim=-1)
        context = self._products(weights, memory.transpose(1, 2))  # [batch, time, n]
        if not self.attends:
            context = torch.zeros_like(context)
        both = self.dropout(torch.cat([low, context], dim=-1))
        high, g = self.second(both, state[:, n : 2 * n])
        wanted = self.dropout(torch.tanh(self.readout(torch.cat([both, high], dim=-1))))
        # as one product of two matrices the table stands in the graph once, for what goes in and what comes out
        logits = linear(wanted.flatten(0, 1), self.embedding.weight, self.bias)
        return logits.unflatten(0, x.shape), torch.cat([h, g, state[:, 2 * n :]], dim=1)

    def _products(self, a: Tensor, b: Tensor) -> Tensor:
        """a [batch, time, k] by the transpose of b [batch, m, k]. As matrices this is another kernel for one step than
        for several, with other last bits; as sums over the last axis it has the same for all. Training need not care.
        """
        if self.training:
            return a @ b.transpose(1, 2)
        return (a[:, :, None] * b[:, None]).sum(-1)

    def prime_equations(self, condition: np.ndarray, state: np.ndarray) -> np.ndarray:
        n = self.hidden_size
        count, memory = state[:, 2 * n].astype(int), state[:, 2 * n + 1 :].reshape(-1, self.max_source, n).copy()
        embedded = self.source_embedding.weight.detach().numpy().astype(np.float64)[condition]
        y, h = oracle.recurrent(self.encoder, embedded, state[:, :n])
        for row, at in enumerate(count):
            kept = y[row, : max(0, self.max_source - at)]
            memory[row, at : at + len(kept)] = kept
        later = (count + condition.shape[1])[:, None]
        return np.concatenate([h, state[:, n : 2 * n], later, memory.reshape(len(state), -1)], axis=1)

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = self.hidden_size
        count, memory = state[:, 2 * n], state[:, 2 * n + 1 :].reshape(-1, self.max_source, n)
        table = self.embedding.weight.detach().numpy().astype(np.float64)
        low, h = oracle.recurrent(self.first, table[x], state[:, :n])
        scores = np.einsum("btn,bsn->bts", oracle.linear(self.query, low), memory)
        scores[np.broadcast_to(np.arange(self.max_source) >= count[:, None, None], scores.shape)] = -np.inf
        scores[count == 0] = 0.0  # nothing to attend to: the memory is zeros
        both = np.concatenate([low, np.einsum("bts,bsn->btn", oracle.softmax(scores), memory)], axis=-1)
        high, g = oracle.recurrent(self.second, both, state[:, n : 2 * n])
        wanted = np.tanh(oracle.linear(self.readout, np.concatenate([both, high], axis=-1)))
        return wanted @ table.T + self.bias.detach().numpy(), np.concatenate([h, g, state[:, 2 * n :]], axis=1)

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, self.target.get_vocab_size(), (batch, time))

    def example_condition(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, self.source.get_vocab_size(), (batch, 16))

    def describe(self, manifest: Manifest, folder: Path) -> None:
        self.source.save(str(folder / "tokenizer.json"), pretty=False)
        pieces = [_piece(self.target, i) for i in range(self.target.get_vocab_size())]
        (folder / "vocabulary.json").write_text(json.dumps(pieces, ensure_ascii=False))
        manifest.description = "An English sentence in, a French one out, piece by piece."
        manifest.mode = MANY_TO_MANY_ENCODER_DECODER
        manifest.input.CopyFrom(StepSpec(dtype=INT64, vocabulary=len(pieces)))
        manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[len(pieces)]))
        manifest.prime.condition.CopyFrom(StepSpec(dtype=INT64, vocabulary=self.source.get_vocab_size()))
        manifest.prime.is_recurrent = True
        manifest.prime.text.tokenizer_file = "tokenizer.json"
        manifest.prime.max_steps = self.max_source
        manifest.prime.end_id = END
        manifest.generation.CopyFrom(
            Generation(
                begin_id=BEGIN, end_id=END, default_max_steps=60, max_steps=100, vocabulary_file="vocabulary.json"
            )
        )
        manifest.position_unit = EMISSIONS
        n = self.hidden_size
        manifest.architecture = (
            f"GRU of {n} over {self.source.get_vocab_size()} word pieces; 2 GRUs of {n} with attention between them, "
            f"{len(pieces)} word pieces"
        )
        manifest.parts.extend(self.first.parts("first"))
        manifest.parts.extend(self.second.parts("second", n))
        manifest.parts.append(StatePart(name="source_length", offset=2 * n, shape=[1]))
        manifest.parts.append(StatePart(name="source", offset=2 * n + 1, shape=[self.max_source, n]))
        manifest.licence = (
            "CC BY 2.0 (data, Tatoeba contributors; selection by manythings.org/anki); Apache-2.0 (weights)"
        )
        manifest.data = "English-French sentence pairs of Tatoeba, at most 10 English words: 40,000 pairs"
