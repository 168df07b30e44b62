"""The network of `describe`: an LSTM that says a dialogue act word by word, and sees what is left to say.

The condition lies in the state row as a vector d of features; a placeholder word takes its feature away as it is
emitted, as the reading gate of the SC-LSTM does (Wen et al., EMNLP 2015), but by a fixed rule.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from cellar_proto.acts import features
from cellar_proto.v1.manifest_pb2 import EMISSIONS, ONE_TO_MANY, Generation, Manifest, StatePart, StepSpec
from cellar_proto.v1.tensor_pb2 import FLOAT32, INT64
from torch import Tensor, nn

from cellar_models import oracle
from cellar_models.network import Network
from cellar_models.recurrent import Recurrent

BEGIN, END, UNKNOWN = 0, 1, 2
MAX_WORDS = 60


class Describe(Network):
    """x: int64 [batch, time] word ids -> y: float32 [batch, time, V] logits of the next word.

    prime(condition: float32 [batch, F]) lays the features into the state row. The row: h and c of the LSTM, then d.
    """

    name = "describe"
    has_prime = True
    uses: Tensor

    def __init__(
        self,
        words: list[str],
        feature_names: list[str],
        copied: list[str],
        closed: list[str],
        hidden_size: int = 192,
        embedding_size: int = 64,
        kind: str = "lstm",
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.words, self.feature_names, self.copied, self.closed = words, feature_names, copied, closed
        num_features = len(feature_names)
        self.embedding = nn.Embedding(len(words), embedding_size)
        self.lstm = Recurrent(kind, embedding_size + num_features, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, len(words))
        self.state_size = self.lstm.state_size + num_features
        # uses[word, feature] = 1 where the word is the feature's placeholder
        uses = torch.zeros(len(words), num_features)
        for i, word in enumerate(words):
            name = f"slot={word[1:-1]}"
            if word.startswith("<") and name in feature_names:
                uses[i, feature_names.index(name)] = 1.0
        self.register_buffer("uses", uses)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        n = self.lstm.state_size
        used = torch.cumsum(torch.nn.functional.embedding(x, self.uses), dim=1)  # whole numbers: exact however cut
        left = torch.relu(state[:, None, n:] - used)  # [batch, time, F]
        y, recurrent = self.lstm(torch.cat([self.dropout(self.embedding(x)), left], dim=-1), state[:, :n])
        return self.head(self.dropout(y)), torch.cat([recurrent, left[:, -1]], dim=1)

    def prime(self, condition: Tensor, state: Tensor) -> Tensor:
        return torch.cat([state[:, : self.lstm.state_size], condition], dim=1)

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = self.lstm.state_size
        uses = self.uses.numpy().astype(np.float64)
        d, left = state[:, n:], []
        for t in range(x.shape[1]):
            d = np.maximum(d - uses[x[:, t]], 0.0)
            left.append(d)
        embedded = self.embedding.weight.detach().numpy().astype(np.float64)[x]
        y, recurrent = oracle.recurrent(
            self.lstm, np.concatenate([embedded, np.stack(left, axis=1)], axis=-1), state[:, :n]
        )
        return oracle.linear(self.head, y), np.concatenate([recurrent, d], axis=1)

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, len(self.words), (batch, time))

    def example_condition(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, 2, (batch, len(self.feature_names))).astype(np.float32)

    def condition(self, act: str) -> tuple[np.ndarray, dict[str, str]]:
        """float32 [F] of an act, and the values of its placeholders; features never trained on are left out."""
        names, values = features(act, frozenset(self.copied), frozenset(self.closed))
        vector = np.zeros(len(self.feature_names), np.float32)
        for name in names:
            if name in self.feature_names:
                vector[self.feature_names.index(name)] = 1.0
        return vector, values

    def describe(self, manifest: Manifest, folder: Path) -> None:
        (folder / "vocabulary.json").write_text(json.dumps(self.words))
        manifest.description = "A dialogue act about restaurants, hotels, laptops or TVs in, a sentence out."
        manifest.mode = ONE_TO_MANY
        manifest.input.CopyFrom(StepSpec(dtype=INT64, vocabulary=len(self.words)))
        manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[len(self.words)]))
        manifest.prime.condition.CopyFrom(StepSpec(dtype=FLOAT32, shape=[len(self.feature_names)]))
        manifest.prime.dialogue_act.features.extend(self.feature_names)
        manifest.prime.dialogue_act.copied_slots.extend(self.copied)
        manifest.prime.dialogue_act.closed_slots.extend(self.closed)
        manifest.generation.CopyFrom(
            Generation(
                begin_id=BEGIN,
                end_id=END,
                default_max_steps=MAX_WORDS,
                max_steps=200,
                vocabulary_file="vocabulary.json",
                separator=" ",
            )
        )
        manifest.position_unit = EMISSIONS
        manifest.architecture = f"{self.lstm.kind.upper()}, 1 layer of {self.lstm.hidden_size}, {len(self.words)} words"
        manifest.parts.extend(self.lstm.parts(self.lstm.kind))
        manifest.parts.append(
            StatePart(name="left_to_say", offset=self.lstm.state_size, shape=[len(self.feature_names)])
        )
        manifest.licence = "Apache-2.0 (data and weights)"
        manifest.data = "RNNLG, all four domains: Wen et al., EMNLP 2015 and NAACL 2016"
