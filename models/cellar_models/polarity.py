"""The network of `sentiment` and `sentiment-ru`: the evidence of each word, weighed by a GRU that reads along.

What naive Bayes adds up, the logarithm of how much more often a word or a pair of words stands in positive than in
negative texts, is the input; the GRU gives it a weight by what came before, and the weighed sum lies in the state row.
Log-count ratios as features: Wang and Manning, ACL 2012.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from cellar_proto.v1.manifest_pb2 import MANY_TO_ONE, TEXT_BYTES, Manifest, StatePart, StepSpec
from cellar_proto.v1.tensor_pb2 import FLOAT32, INT64
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from cellar_models import oracle
from cellar_models.network import Network
from cellar_models.recurrent import Recurrent
from cellar_models.training import Trainer, equal_lengths

UNKNOWN = 0
# Parts of the training texts; the evidence for a text of one is counted in the others.
NUM_PARTS = 8


@dataclass(frozen=True)
class Text:
    """A text's words and whether it is positive."""

    words: list[str]
    label: int


class Polarity(Network):
    """x: int64 [batch, time] word ids -> y: float32 [batch, time, 2], probabilities of negative and positive.

    The row: h of the GRU, the last word's id, the sum of evidence so far. words: the vocabulary, 0 the unknown one.
    """

    odds: Tensor
    pair_odds: Tensor
    pair: Tensor

    def __init__(
        self,
        words: list[str],
        embedding_size: int = 16,
        hidden_size: int = 32,
        num_buckets: int = 2**16,
        kind: str = "gru",
    ) -> None:
        super().__init__()
        self.words, self.num_buckets = words, num_buckets
        self.place = {word: i for i, word in enumerate(words)}
        self.embedding = nn.Embedding(len(words), embedding_size)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.gru = Recurrent(kind, embedding_size + 2, hidden_size)
        # weights of the two kinds of evidence, beside 1, and evidence of its own
        self.head = nn.Linear(hidden_size, 3)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.scale = nn.Parameter(torch.ones(1))
        self.prior = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(0.7)
        self.state_size = self.gru.state_size + 2
        self.register_buffer("odds", torch.zeros(len(words), 1))
        self.register_buffer("pair_odds", torch.zeros(num_buckets, 1))
        # which pair of words a bucket is for: others that fall into it have no evidence
        self.register_buffer("pair", torch.full((num_buckets,), -1, dtype=torch.int32))

    def buckets(self, x: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Of each word and the one before it: the bucket int64 [batch, time], and 1.0 where it is theirs else 0.0.
        last: int64 [batch, 1], the word before the first."""
        number = torch.cat([last, x[:, :-1]], dim=1) * len(self.words) + x
        bucket = number % self.num_buckets
        return bucket, (self.pair[bucket].long() == number).float()

    def evidence(self, x: Tensor, last: Tensor) -> Tensor:
        """float32 [batch, time, 2]: of the word, and of the pair that it makes with the one before."""
        bucket, is_known = self.buckets(x, last)
        paired = torch.nn.functional.embedding(bucket, self.pair_odds) * is_known[..., None]
        return torch.cat([torch.nn.functional.embedding(x, self.odds), paired], dim=-1)

    def logits(self, x: Tensor, evidence: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Of positive against negative, [batch, time], and the next state."""
        n = self.gru.state_size
        embedded = self.dropout(self.embedding(x))
        h, recurrent = self.gru(torch.cat([embedded, evidence], dim=-1), state[:, :n])
        weights = self.head(self.dropout(h) if self.training else h)
        found = (evidence * (1.0 + weights[..., :2])).sum(dim=-1) + weights[..., 2]
        # the sum so far is the first of what is added: the same bits however the text is cut
        total = torch.cumsum(torch.cat([state[:, n + 1 :], found], dim=1), dim=1)[:, 1:]
        return self.scale * total + self.prior, torch.cat([recurrent, x[:, -1:].float(), total[:, -1:]], dim=1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        n = self.gru.state_size
        z, state = self.logits(x, self.evidence(x, state[:, n : n + 1].long()), state)
        positive = torch.sigmoid(z)
        return torch.stack([1.0 - positive, positive], dim=-1), state

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = self.gru.state_size
        number = np.concatenate([state[:, n : n + 1].astype(np.int64), x[:, :-1]], axis=1) * len(self.words) + x
        bucket = number % self.num_buckets
        paired = self.pair_odds.numpy()[bucket, 0] * (self.pair.numpy()[bucket] == number)
        evidence = np.stack([self.odds.numpy()[x, 0], paired], axis=-1).astype(np.float64)
        embedded = self.embedding.weight.detach().numpy().astype(np.float64)[x]
        h, recurrent = oracle.recurrent(self.gru, np.concatenate([embedded, evidence], axis=-1), state[:, :n])
        weights = oracle.linear(self.head, h)
        found = (evidence * (1 + weights[..., :2])).sum(axis=-1) + weights[..., 2]
        total = state[:, n + 1 :] + np.cumsum(found, axis=1)
        positive = oracle.sigmoid(self.scale.detach().numpy() * total + self.prior.detach().numpy())
        following = np.concatenate([recurrent, x[:, -1:].astype(np.float64), total[:, -1:]], axis=1)
        return np.stack([1 - positive, positive], axis=-1), following

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        # the frequent words come first, and pairs of them are known
        return (rng.random((batch, time)) ** 4 * len(self.words)).astype(np.int64)

    def ids(self, words: list[str]) -> list[int]:
        return [self.place.get(word, UNKNOWN) for word in words]

    def fill(self, manifest: Manifest) -> None:
        """What is the same in each manifest of such a network."""
        manifest.text.tokenizer_file = "tokenizer.json"
        manifest.mode = MANY_TO_ONE
        manifest.input.CopyFrom(StepSpec(dtype=INT64, vocabulary=len(self.words)))
        manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[2], names=["negative", "positive"]))
        manifest.labels.extend(["negative", "positive"])
        manifest.position_unit = TEXT_BYTES
        manifest.architecture = (
            f"{self.gru.kind.upper()}, 1 layer of {self.gru.hidden_size} that weighs a sum of log-odds, "
            f"{len(self.words)} words"
        )
        n = self.gru.state_size
        manifest.parts.extend(self.gru.parts(self.gru.kind))
        manifest.parts.append(StatePart(name="last_word", offset=n, shape=[1]))
        manifest.parts.append(StatePart(name="evidence", offset=n + 1, shape=[1]))


def build(texts: list[Text], make: Callable[[list[str]], Polarity]) -> Polarity:
    """A network for the words that stand in at least two texts, the most frequent first, with the evidence of the
    words and of the pairs that stand in at least two."""
    counts = Counter(word for text in texts for word in set(text.words))
    chosen = sorted((w for w, n in counts.items() if n >= 2), key=lambda w: (-counts[w], w))
    network = make(["[UNK]", *chosen])
    size = len(network.words)
    pairs: Counter[int] = Counter()
    for text in texts:
        ids = network.ids(text.words)
        pairs.update({a * size + b for a, b in pairwise(ids) if a and b})
    for number, n in reversed(pairs.most_common()):
        if n >= 2:  # of several in a bucket the most frequent stays
            network.pair[number % network.num_buckets] = number
    odds, pair_odds = _log_odds(network, texts)
    network.odds.copy_(odds[:, None])
    network.pair_odds.copy_(pair_odds[:, None])
    return network


def _log_odds(network: Polarity, texts: list[Text]) -> tuple[Tensor, Tensor]:
    """log of (share in positive / share in negative texts), add-one, of words [V] and of pairs by bucket [B]."""
    counts = torch.ones(2, len(network.words)), torch.ones(2, network.num_buckets)
    for text in texts:
        ids = torch.tensor([network.ids(text.words)])
        bucket, is_known = network.buckets(ids, torch.zeros(1, 1, dtype=torch.int64))
        counts[0][text.label, ids.unique()] += 1
        counts[1][text.label, bucket[is_known > 0].unique()] += 1
    known = torch.cat([torch.zeros(1), torch.ones(len(network.words) - 1)]), (network.pair >= 0).float()
    shares = [(each * used) / (each * used).sum(dim=1, keepdim=True) for each, used in zip(counts, known, strict=True)]
    odds, pair_odds = (torch.nan_to_num(torch.log(share[1] / share[0])) for share in shares)
    return odds, pair_odds


def _batches(rows: list[tuple[list[int], int, int]], size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of equal length, so that no step is padding: ids [batch, time], labels [batch], parts [batch]."""
    for batch in equal_lengths((len(ids) for ids, _, _ in rows), size):
        picked = [rows[i] for i in batch]
        yield (
            torch.tensor([ids for ids, _, _ in picked]),
            torch.tensor([float(label) for _, label, _ in picked]),
            torch.tensor([part for _, _, part in picked]),
        )


def train(network: Polarity, texts: list[Text], valid: list[Text], trainer: Trainer, num_epochs: int = 4) -> None:
    """Cross entropy after the last word and, at a fifth, after every word; words dropped at random. A text's evidence
    is counted in the other parts of the training texts, so that it looks as it will for a new one."""
    rows = [(network.ids(text.words), text.label, i % NUM_PARTS) for i, text in enumerate(texts)]
    held = [(network.ids(text.words), text.label, 0) for text in valid]
    tables = [
        _log_odds(network, [text for i, text in enumerate(texts) if i % NUM_PARTS != part]) for part in range(NUM_PARTS)
    ]
    odds, pair_odds = (torch.stack(each) for each in zip(*tables, strict=True))
    num_epochs, done = trainer.max_epochs or num_epochs, 0
    num_batches = sum(1 for _ in _batches(rows, 32))

    def epoch() -> float:
        nonlocal done
        total = 0.0
        for at, (ids, labels, part) in enumerate(_batches(rows, 32)):
            trainer.set_rate((done + at / num_batches) / num_epochs, peak=1.5, warm=0.1)
            ids = ids.masked_fill(torch.rand(ids.shape) < 0.1, UNKNOWN)
            bucket, is_known = network.buckets(ids, torch.zeros(len(ids), 1, dtype=torch.int64))
            evidence = torch.stack([odds[part[:, None], ids], pair_odds[part[:, None], bucket] * is_known], dim=-1)
            z, _ = network.logits(ids, evidence, torch.zeros(len(ids), network.state_size))
            every = binary_cross_entropy_with_logits(z, labels[:, None].expand_as(z))
            loss = binary_cross_entropy_with_logits(z[:, -1], labels) + 0.2 * every
            total += trainer.step(loss) * len(ids)
        done += 1
        return total / len(rows)

    def validate() -> float:
        total = 0.0
        for ids, labels, _ in _batches(held, 256):  # none where all texts are for training
            y, _ = network(ids, torch.zeros(len(ids), network.state_size))
            total += float(-torch.log(y[torch.arange(len(ids)), -1, labels.long()]).sum())
        return total / max(len(held), 1)

    trainer.cycle(epoch, validate, num_epochs=num_epochs)


def scores(network: Polarity, texts: list[Text]) -> tuple[float, float]:
    """Accuracy after the last word, and the mean of the two classes' F1."""
    counts = np.zeros((2, 2), int)
    with torch.no_grad():
        rows = [(network.ids(text.words), text.label, 0) for text in texts]
        for ids, labels, _ in _batches(rows, 256):
            y, _ = network(ids, torch.zeros(len(ids), network.state_size))
            np.add.at(counts, (labels.long().numpy(), y[:, -1].argmax(1).numpy()), 1)
    return measures(counts)


def measures(counts: np.ndarray) -> tuple[float, float]:
    """Accuracy and macro-F1 of counts [truth, answer]."""
    f1 = 2 * np.diag(counts) / np.maximum(counts.sum(0) + counts.sum(1), 1)
    return float(np.trace(counts) / counts.sum()), float(f1.mean())


def naive_bayes(
    learn: list[Text], test: list[Text], num_grams: int = 2, with_prior: bool = False
) -> tuple[float, float]:
    """Accuracy and macro-F1 of naive Bayes on unigrams and, for 2, bigrams (presence, add-one)."""

    def grams(words: list[str]) -> set[str]:
        return {*words, *(f"{a} {b}" for a, b in pairwise(words) if num_grams == 2)}

    seen: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for text in learn:
        seen[text.label].update(grams(text.words))
    size = len(seen[0].keys() | seen[1].keys())
    totals = [sum(c.values()) + size for c in seen]
    positives = sum(text.label for text in learn)
    prior = math.log(positives / (len(learn) - positives)) if with_prior else 0.0
    counts = np.zeros((2, 2), int)
    for text in test:
        found = sum(math.log((seen[1][g] + 1) / totals[1] * totals[0] / (seen[0][g] + 1)) for g in grams(text.words))
        counts[text.label, int(found + prior > 0)] += 1
    return measures(counts)
