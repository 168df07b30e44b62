"""describe, one-to-many: a dialogue act in, a sentence out, word by word. An LSTM that sees what is left to say.

The condition lies in the state row as a vector d of features; a placeholder word takes its feature away as it is
emitted, as the reading gate of the SC-LSTM does (Wen et al., EMNLP 2015), but by a fixed rule.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from cellar_proto.acts import SPECIAL_VALUES, features, parse
from cellar_proto.v1.manifest_pb2 import EMISSIONS, ONE_TO_MANY, Generation, Manifest, StatePart, StepSpec
from cellar_proto.v1.tensor_pb2 import FLOAT32, INT64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cellar_models import oracle
from cellar_models.data import read
from cellar_models.network import Network
from cellar_models.recurrent import Recurrent
from cellar_models.training import Result, Trainer, equal_lengths

FILES = {
    "train": "d9d685a557bc8d0811512fa165760f8d0e2dd00af27aff2684579e14c3d898e1",
    "valid": "2632688c855bc0157dbd821fdb02a17518fb1eb8aa34b704f6231bce914c91c4",
    "test": "216f1f48ad3d109c412b63f40bb55f7bb132df65c33637dfdc7ca7333672e1d2",
}
BEGIN, END, UNKNOWN = 0, 1, 2


class Describe(Network):
    """x: int64 [batch, time] word ids -> y: float32 [batch, time, V] logits of the next word.

    prime(condition: float32 [batch, F]) lays the features into the state row. The row: h and c of the LSTM, then d.
    """

    name = "describe"
    has_prime = True

    def __init__(
        self,
        words: list[str],
        feature_names: list[str],
        copied: list[str],
        closed: list[str],
        hidden_size: int = 192,
        embedding_size: int = 64,
        kind: str = "lstm",
    ) -> None:
        super().__init__()
        self.words, self.feature_names, self.copied, self.closed = words, feature_names, copied, closed
        num_features = len(feature_names)
        self.embedding = nn.Embedding(len(words), embedding_size)
        self.lstm = Recurrent(kind, embedding_size + num_features, hidden_size)
        self.dropout = nn.Dropout(0.45)
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
        manifest.description = "A restaurant's dialogue act in, a sentence out, word by word."
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
                default_max_steps=60,
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
        manifest.data = "RNNLG, restaurant: Wen et al., EMNLP 2015 and NAACL 2016"


def load(data: Path, split: str) -> list[tuple[str, str]]:
    """Pairs (dialogue act, sentence): 3,114 train, 1,039 valid, 1,039 test."""
    text = read(data, "nlg_rnnlg", f"restaurant.{split}.tsv", FILES[split])
    return [tuple(line.split("\t", 1)) for line in text.splitlines()]  # type: ignore[misc]


def delexicalise(sentence: str, values: dict[str, str]) -> list[str]:
    """Words of a sentence with the placeholders' values replaced, the longest value first."""
    sentence = f" {sentence.lower()} "
    for placeholder, value in sorted(values.items(), key=lambda item: -len(item[1])):
        sentence = sentence.replace(f" {value.lower()} ", f" {placeholder} ", 1)
    return sentence.split()


def lexicalise(words: list[str], values: dict[str, str]) -> str:
    return " ".join(values.get(word, word) for word in words)


def _slots(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Slots whose values stand word for word in at least 60 % of their sentences are copied, the others are closed."""
    seen: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for act, sentence in pairs:
        for slot, value in parse(act)[1]:
            seen[slot] += 0
            if value.lower() not in SPECIAL_VALUES:
                seen[slot] += 1
                found[slot] += f" {value.lower()} " in f" {sentence.lower()} "
    copied = sorted(slot for slot in seen if seen[slot] and found[slot] >= 0.6 * seen[slot])
    return copied, sorted(slot for slot in seen if slot not in copied)


def build(data: Path, kind: str = "lstm", hidden_size: int = 192) -> Describe:
    pairs = load(data, "train")
    copied, closed = _slots(pairs)
    names: set[str] = set()
    counts: Counter[str] = Counter()
    for act, sentence in pairs:
        named, values = features(act, frozenset(copied), frozenset(closed))
        names.update(named)
        counts.update(delexicalise(sentence, values))
    words = sorted((w for w, n in counts.items() if n >= 2), key=lambda w: (-counts[w], w))
    placeholders = sorted({f"<{n[5:]}>" for n in names if n.startswith("slot=") and ":" not in n} - set(words))
    words = ["<begin>", "<end>", "<unk>", *words, *placeholders]
    return Describe(words, sorted(names), copied, closed, hidden_size, kind=kind)


def train(network: Describe, data: Path, trainer: Trainer) -> None:
    """Cross entropy of the next word, whole sentences by backpropagation through time, batches of equal length."""
    place = {word: i for i, word in enumerate(network.words)}

    def read_split(split: str) -> list[tuple[np.ndarray, list[int]]]:
        rows = []
        for act, sentence in load(data, split):
            vector, values = network.condition(act)
            rows.append((vector, [BEGIN, *(place.get(w, UNKNOWN) for w in delexicalise(sentence, values)), END]))
        return rows

    learn, valid = read_split("train"), read_split("valid")

    def batches(rows: list[tuple[np.ndarray, list[int]]], size: int) -> list[tuple[Tensor, Tensor]]:
        return [
            (torch.from_numpy(np.stack([rows[i][0] for i in batch])), torch.tensor([rows[i][1] for i in batch]))
            for batch in equal_lengths((len(ids) for _, ids in rows), size)
        ]

    def loss_of(condition: Tensor, ids: Tensor) -> Tensor:
        state = network.prime(condition, torch.zeros(len(ids), network.state_size))
        logits, _ = network(ids[:, :-1], state)
        return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def mean(rows: list[tuple[np.ndarray, list[int]]], update: bool) -> float:
        total = count = 0.0
        for condition, ids in batches(rows, 32):
            loss = loss_of(condition, ids)
            total += (trainer.step(loss) if update else float(loss)) * ids.numel()
            count += ids.numel()
        return total / count

    trainer.fit(lambda: mean(learn, True), lambda: mean(valid, False), num_epochs=60, patience=8)


@torch.no_grad()
def generate(
    network: Describe, condition: np.ndarray, values: dict[str, str], num_beams: int = 1, max_steps: int = 60
) -> list[str]:
    """Words for a condition float32 [F]: greedy, or of `num_beams` finished beams the one with the fewest slot errors
    and then the highest mean log-probability."""
    state = network.prime(torch.from_numpy(condition)[None], torch.zeros(1, network.state_size))
    beams: list[tuple[float, list[int], Tensor]] = [(0.0, [BEGIN], state)]
    done: list[tuple[float, list[int]]] = []
    for _ in range(max_steps):
        x = torch.tensor([[ids[-1]] for _, ids, _ in beams])
        logits, following = network(x, torch.cat([s for _, _, s in beams]))
        scores = torch.log_softmax(logits[:, 0], dim=-1)
        grown = []
        for i, (score, ids, _) in enumerate(beams):
            best = scores[i].topk(num_beams)
            for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                if token == END:
                    done.append(((score + value) / len(ids), ids[1:]))
                else:
                    grown.append((score + value, [*ids, token], following[i : i + 1]))
        beams = sorted(grown, key=lambda b: -b[0])[:num_beams]
        if len(done) >= num_beams or not beams:
            break
    texts = [(score, [network.words[i] for i in ids]) for score, ids in done or [(beams[0][0], beams[0][1][1:])]]
    return max(texts, key=lambda text: (-slot_errors(text[1], values), text[0]))[1]


def slot_errors(words: list[str], values: dict[str, str]) -> int:
    """Placeholders that are missing, said twice, or not asked for."""
    said = Counter(word for word in words if re.fullmatch(r"<[\w#]+>", word) and word not in ("<unk>",))
    return sum(abs(said[each] - 1) for each in values) + sum(each not in values for each in said)


def corpus_bleu(hypotheses: list[list[str]], references: list[list[list[str]]]) -> float:
    """BLEU-4 of a corpus with several references each (Papineni et al., ACL 2002), 0 to 1."""
    matches, totals, length, nearest = [0] * 4, [0] * 4, 0, 0
    for hypothesis, several in zip(hypotheses, references, strict=True):
        length += len(hypothesis)
        nearest += min((abs(len(r) - len(hypothesis)), len(r)) for r in several)[1]
        for n in range(1, 5):
            grams = Counter(zip(*(hypothesis[i:] for i in range(n)), strict=False))
            allowed: Counter[tuple[str, ...]] = Counter()
            for r in several:
                allowed |= Counter(zip(*(r[i:] for i in range(n)), strict=False))
            matches[n - 1] += sum(min(count, allowed[gram]) for gram, count in grams.items())
            totals[n - 1] += sum(grams.values())
    if min(matches) == 0:
        return 0.0
    precision = sum(math.log(m / t) for m, t in zip(matches, totals, strict=True)) / 4
    return math.exp(precision + min(0.0, 1 - nearest / length))


def evaluate(network: Describe, data: Path, num_beams: int = 10) -> Result:
    """Corpus BLEU-4 on test, several references by act, both delexicalised as in the published figures."""
    learn = load(data, "train")
    by_act: dict[tuple[str, ...], list[list[str]]] = {}
    by_full_act: dict[str, list[list[str]]] = {}
    acts: dict[tuple[str, ...], str] = {}
    for act, sentence in load(data, "test"):
        named, values = features(act, frozenset(network.copied), frozenset(network.closed))
        key = tuple(sorted(named))
        acts.setdefault(key, act)
        by_act.setdefault(key, []).append(delexicalise(sentence, values))
        by_full_act.setdefault(act, []).append(sentence.lower().split())
    by_train_act: dict[tuple[str, ...], list[list[str]]] = {}
    for act, sentence in learn:
        named, values = features(act, frozenset(network.copied), frozenset(network.closed))
        by_train_act.setdefault(tuple(sorted(named)), []).append(delexicalise(sentence, values))
    keys = list(by_train_act)
    vectors = np.stack([_vector(network, key) for key in keys])
    searched, greedy, nearest, typical, references, unseen, slots, errors = [], [], [], [], [], [], 0, 0
    for key, sentences in by_act.items():
        condition, values = network.condition(acts[key])
        words, beam = generate(network, condition, values), generate(network, condition, values, num_beams)
        twins = by_train_act[keys[int(np.abs(vectors - condition).sum(1).argmin())]]
        # every test sentence counts, and all those of its act are its references
        n = len(sentences)
        greedy += [words] * n
        searched += [beam] * n
        nearest += [twins[0]] * n
        typical += [_most_typical(twins)] * n
        references += [sentences] * n
        unseen += [key not in by_train_act] * n
        slots += len(values) * n
        errors += slot_errors(words, values) * n
    new = [i for i, is_new in enumerate(unseen) if is_new]
    lexicalised, by_sentence = [], []
    for act, sentences in by_full_act.items():
        condition, values = network.condition(act)
        text = lexicalise(generate(network, condition, values), values).lower().split()
        lexicalised += [text] * len(sentences)
        by_sentence += [sentences] * len(sentences)
    bleu, knn = corpus_bleu(greedy, references), corpus_bleu(nearest, references)
    best = corpus_bleu(typical, references)
    return Result(
        metrics={"BLEU-4, greedy (as served at temperature 0)": bleu},
        baselines={
            "nearest training act": knn,
            "its most typical sentence": best,
            "kNN, published": 0.5943,
            "SC-LSTM, published": 0.7525,
        },
        unit="corpus BLEU-4, 0 to 1",
        is_better=bleu > max(knn, best, 0.5943),
        notes=(
            "Delexicalised; every test sentence counts, and all test sentences of its act are its references. "
            "The published figures choose among over-generated sentences."
        ),
        more={
            f"BLEU-4, beam {num_beams}, fewest slot errors": corpus_bleu(searched, references),
            "BLEU-4, greedy, acts absent from train": corpus_bleu(
                [greedy[i] for i in new], [references[i] for i in new]
            ),
            "test sentences of delexicalised acts absent from train": float(len(new)),
            "test sentences": float(len(greedy)),
            "BLEU-4, greedy, lexicalised, by full act": corpus_bleu(lexicalised, by_sentence),
            "slot error, greedy": errors / slots,
        },
    )


def _vector(network: Describe, names: tuple[str, ...]) -> np.ndarray:
    return np.array([float(name in names) for name in network.feature_names], np.float32)


def _most_typical(sentences: list[list[str]]) -> list[str]:
    """The sentence with the highest BLEU against the others."""
    if len(sentences) < 3:
        return sentences[0]
    return max(sentences, key=lambda s: corpus_bleu([s], [[other for other in sentences if other is not s]]))


def write_samples(folder: Path, data: Path) -> None:
    """20 acts of test."""
    acts = list(dict.fromkeys(act for act, _ in load(data, "test")))[:20]
    (folder / "acts.txt").write_text("\n".join(acts) + "\n")
