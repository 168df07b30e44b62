"""translate, many-to-many: an English sentence in, a French one out, piece by piece; attention over the state row.

The encoder's outputs lie in the state row, each in the slot of its position, beside how many there are. So a source
sentence may come in any cuts, and a session that is forked carries its own copy of what it attends to. Attention as in
Luong et al., EMNLP 2015 ("general", global), between two recurrent layers of the decoder as in Wu et al., 2016.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
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
from torch.nn.functional import cross_entropy, linear

from cellar_models import oracle
from cellar_models.data import data_folder, read
from cellar_models.decoding import beam, greedy, nearest, scores
from cellar_models.network import Network
from cellar_models.pieces import BEGIN, END, source_pieces, target_pieces
from cellar_models.recurrent import Recurrent
from cellar_models.training import Result, Trainer

FILES = {
    "train": "e91655b4a661a2499ba156fb23fc8fa6002e5da163a7945574eaa50e475e6d2b",
    "dev": "bcad58a3fcb9dd945c7131df6f9aac77de419e2dec0786bc02f4dda2092fd411",
    "test": "1eba40ccd495227a3dbfdba933fb79d184908a48ad38a7f7baa15e71582007bb",
}
Pair = tuple[list[int], list[int]]


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
        pieces = [self.target.id_to_token(i).replace("\u2581", " ") for i in range(self.target.get_vocab_size())]
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


def load(data: Path, split: str) -> list[tuple[str, str]]:
    """Pairs (English, French): 40,000 train, 2,000 dev, 2,001 test."""
    text = read(data, "translation_en_fr", f"{split}.tsv", FILES[split])
    return [tuple(line.split("\t")) for line in text.splitlines()]  # type: ignore[misc]


def build(data: Path) -> Translate:
    pairs = load(data, "train")
    return Translate(source_pieces([s for s, _ in pairs], 3000), target_pieces([t for _, t in pairs], 3500))


def encode(network: Translate, pairs: list[tuple[str, str]]) -> list[Pair]:
    """Ids of the source with its end, and of the target between begin and end."""
    sources = network.source.encode_batch([s for s, _ in pairs])
    targets = network.target.encode_batch([t for _, t in pairs])
    return [([*s.ids, END], [BEGIN, *t.ids, END]) for s, t in zip(sources, targets, strict=True)]


def batches(pairs: list[Pair], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Sources of equal length [batch, time], and their targets filled up with -1 [batch, time']."""
    order = torch.randperm(len(pairs)).tolist()
    order.sort(key=lambda i: (len(pairs[i][0]), len(pairs[i][1])))
    chosen: list[list[int]] = []
    for i in order:
        if chosen and len(chosen[-1]) < size and len(pairs[chosen[-1][0]][0]) == len(pairs[i][0]):
            chosen[-1].append(i)
        else:
            chosen.append([i])
    for k in torch.randperm(len(chosen)).tolist():
        longest = max(len(pairs[i][1]) for i in chosen[k])
        yield (
            torch.tensor([pairs[i][0] for i in chosen[k]]),
            torch.tensor([pairs[i][1] + [-1] * (longest - len(pairs[i][1])) for i in chosen[k]]),
        )


def loss_of(network: Translate, source: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of the next target piece."""
    state = network.prime(source, torch.zeros(len(source), network.state_size))
    logits, _ = network(target[:, :-1].clamp(min=0), state)
    return cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=-1, label_smoothing=smoothing)


NUM_EPOCHS, BATCH, HIGHEST_RATE = 16, 64, 3e-3


def train(network: Translate, data: Path, trainer: Trainer) -> None:
    """Label-smoothed cross entropy, products in bfloat16; the rate rises for a tenth of the way, then falls."""
    fit(network, encode(network, load(data, "train")), encode(network, load(data, "dev")), trainer, NUM_EPOCHS)


def fit(
    network: Translate,
    learn: list[Pair],
    valid: list[Pair],
    trainer: Trainer,
    num_epochs: int,
    watch: Callable[[float], None] = lambda loss: None,
) -> list[float]:
    """Trains for so many epochs (or the trainer's limit); validation losses by epoch, not smoothed. watch: called with
    each, before the next epoch."""
    num_epochs = min(num_epochs, trainer.max_epochs or num_epochs)
    total, done = num_epochs * sum(1 for _ in batches(learn, BATCH)), 0

    def epoch() -> float:
        nonlocal done
        losses = []
        for source, target in batches(learn, BATCH):
            along = done / total
            rate = along / 0.1 if along < 0.1 else 0.5 * (1 + math.cos(math.pi * (along - 0.1) / 0.9))
            for group in trainer.optimizer.param_groups:
                group["lr"] = HIGHEST_RATE * max(rate, 1e-3)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(network, source, target, 0.1)
            losses.append(trainer.step(loss))
            done += 1
        return sum(losses) / len(losses)

    def validate() -> float:
        sums = [(float(loss_of(network, s, t)) * int((t[:, 1:] >= 0).sum()), t) for s, t in batches(valid, 256)]
        loss = sum(loss for loss, _ in sums) / sum(int((t[:, 1:] >= 0).sum()) for _, t in sums)
        watch(loss)
        return loss

    return trainer.fit(epoch, validate, num_epochs=num_epochs, patience=num_epochs)


# The same network, data and seed with every context zero, after 15 epochs (`python -m cellar_models.translate` trains
# it): test, greedy.
WITHOUT_ATTENTION = {"BLEU": 12.4938, "chrF": 30.6169}


def evaluate(network: Translate, data: Path) -> Result:
    """BLEU and chrF on test, greedy and by beams, beside the same without attention and the nearest training pair."""
    pairs = load(data, "test")
    references = [t for _, t in pairs]
    sources = [s for s, _ in encode(network, pairs)]
    found = [network.target.decode(ids) for ids in greedy(network, sources)]
    ours = scores(found, references)
    # a search takes far longer: of some
    some = slice(None, None, 20)
    searched = scores([network.target.decode(beam(network, ids)) for ids in sources[some]], references[some])
    beside = scores(found[some], references[some])
    copied = scores(nearest(load(data, "train"), [s for s, _ in pairs]), references)
    return Result(
        metrics={f"{name}, greedy": value for name, value in ours.items()},
        baselines={
            **{f"the same without attention, {name}": value for name, value in WITHOUT_ATTENTION.items()},
            **{f"French of the nearest training sentence, {name}": value for name, value in copied.items()},
        },
        unit=f"{len(pairs)} test pairs, one reference each, sacrebleu, 0 to 100",
        is_better=ours["BLEU"] > max(WITHOUT_ATTENTION["BLEU"], copied["BLEU"]),
        notes=(
            "BLEU is sacrebleu's, of cased text with its own tokens (13a). Many of the sentences have several good "
            "translations (tu or vous, masculine or feminine), of which one is the reference."
        ),
        more={
            "pairs that were searched too": float(len(references[some])),
            **{f"{name} of these, 4 beams": value for name, value in searched.items()},
            **{f"{name} of these, greedy": value for name, value in beside.items()},
        },
    )


def write_samples(folder: Path, data: Path) -> None:
    """200 test pairs, of as many English sentences."""
    pairs = list({english: (english, french) for english, french in load(data, "test")}.values())
    (folder / "sentences.tsv").write_text("\n".join("\t".join(pair) for pair in pairs[::9][:200]) + "\n")


def main() -> int:
    """Trains the network without attention, and says how good it is."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    data = data_folder()
    network = build(data)
    network.attends = False
    train(network, data, Trainer(network))
    pairs = load(data, "test")
    found = greedy(network, [s for s, _ in encode(network, pairs)])
    print(scores([network.target.decode(ids) for ids in found], [t for _, t in pairs]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
