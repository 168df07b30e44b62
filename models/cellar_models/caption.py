"""caption, one-to-many: a picture of three boxes in, a sentence about it out, word by word. Convolutions, then an LSTM.

The three boxes are looked at by the same convolutions and summed up (deep sets: Zaheer et al., NIPS 2017), so that
their order cannot matter; what was seen stays in the state row and is shown to the LSTM at every word.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from cellar_proto.v1.manifest_pb2 import EMISSIONS, ONE_TO_MANY, Generation, Manifest, StatePart, StepSpec
from cellar_proto.v1.tensor_pb2 import FLOAT32, INT64, UINT8
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cellar_models import oracle, scenes
from cellar_models.caption_data import (
    BOX_STEP,
    BOX_WIDTH,
    HEIGHT,
    SPLIT_SEED,
    WIDTH,
    load,
    mixed,
    true_sentences,
)
from cellar_models.caption_judges import of_fixed_sentences, of_other_scenes, shares
from cellar_models.network import Network
from cellar_models.recurrent import Recurrent
from cellar_models.training import Result, Trainer

BEGIN, END = 0, 1
# Words of a sentence, at most.
MAX_STEPS = 30


class Caption(Network):
    """x: int64 [batch, time] word ids -> y: float32 [batch, time, V] logits of the next word.

    prime(condition: uint8 [batch, 50, 200, 3], RGB) lays what it sees into the state row, behind h and c of the LSTM.
    """

    name = "caption"
    has_prime = True

    def __init__(self, words: list[str], hidden_size: int = 144, seen_size: int = 96) -> None:
        super().__init__()
        self.words, self.seen_size = words, seen_size
        self.look = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(7 * 7 * 32, seen_size),
            nn.ReLU(),
            nn.Linear(seen_size, seen_size),
            nn.ReLU(),
        )
        self.gather = nn.Linear(seen_size, seen_size)
        self.embedding = nn.Embedding(len(words), 48)
        self.lstm = Recurrent("lstm", 48 + seen_size, hidden_size)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(hidden_size, len(words))
        self.state_size = self.lstm.state_size + seen_size

    def see(self, condition: Tensor) -> Tensor:
        """float32 [batch, seen] of uint8 [batch, 50, 200, 3]."""
        picture = condition.float() / 127.5 - 1.0
        boxes = torch.cat([picture[:, None, :, k * BOX_STEP : k * BOX_STEP + BOX_WIDTH] for k in range(3)], dim=1)
        each = self.look(boxes.flatten(0, 1).permute(0, 3, 1, 2)).unflatten(0, (-1, 3))
        return torch.relu(self.gather(each.sum(dim=1)))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        n = self.lstm.state_size
        seen = state[:, None, n:].expand(-1, x.shape[1], -1)
        y, recurrent = self.lstm(torch.cat([self.dropout(self.embedding(x)), seen], dim=-1), state[:, :n])
        return self.head(self.dropout(y)), torch.cat([recurrent, state[:, n:]], dim=1)

    def prime(self, condition: Tensor, state: Tensor) -> Tensor:
        return torch.cat([state[:, : self.lstm.state_size], self.see(condition)], dim=1)

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = self.lstm.state_size
        embedded = self.embedding.weight.detach().numpy().astype(np.float64)[x]
        seen = np.repeat(state[:, None, n:], x.shape[1], axis=1)
        y, recurrent = oracle.recurrent(self.lstm, np.concatenate([embedded, seen], axis=-1), state[:, :n])
        return oracle.linear(self.head, y), np.concatenate([recurrent, state[:, n:]], axis=1)

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, len(self.words), (batch, time))

    def example_condition(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        """Boxes with a few squares in the three colors."""
        pictures = np.full((batch, HEIGHT, WIDTH, 3), 211, np.uint8)
        for picture in pictures:
            for _ in range(rng.integers(3, 12)):
                size = int(rng.choice([5, 10, 15]))
                y, x = rng.integers(0, HEIGHT - size + 1), rng.integers(0, BOX_WIDTH - size + 1)
                left = BOX_STEP * rng.integers(0, 3) + x
                picture[y : y + size, left : left + size] = [(0, 153, 255), (255, 255, 0), (0, 0, 0)][
                    rng.integers(0, 3)
                ]
        return pictures

    def describe(self, manifest: Manifest, folder: Path) -> None:
        (folder / "vocabulary.json").write_text(json.dumps(self.words))
        manifest.description = "A picture of three boxes with colored shapes in, a sentence about it out."
        manifest.mode = ONE_TO_MANY
        manifest.input.CopyFrom(StepSpec(dtype=INT64, vocabulary=len(self.words)))
        manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[len(self.words)]))
        manifest.prime.condition.CopyFrom(StepSpec(dtype=UINT8, shape=[HEIGHT, WIDTH, 3]))
        manifest.generation.CopyFrom(
            Generation(
                begin_id=BEGIN,
                end_id=END,
                default_max_steps=MAX_STEPS,
                max_steps=100,
                vocabulary_file="vocabulary.json",
                separator=" ",
            )
        )
        manifest.position_unit = EMISSIONS
        manifest.architecture = (
            f"3 convolutions a box; LSTM, 1 layer of {self.lstm.hidden_size}, {len(self.words)} words"
        )
        manifest.parts.extend(self.lstm.parts("lstm"))
        manifest.parts.append(StatePart(name="seen", offset=self.lstm.state_size, shape=[self.seen_size]))
        manifest.licence = "CC BY 4.0 (data); Apache-2.0 (weights)"
        manifest.data = "NLVR, Suhr et al., ACL 2017: its true sentences (dev, test, hidden)"


def build(data: Path) -> Caption:
    """The vocabulary: words that occur in two sentences of train or more."""
    counts = Counter(word for text in {each.sentence for each in load(data)["train"]} for word in text.split())
    words = sorted((word for word, n in counts.items() if n >= 2), key=lambda word: (-counts[word], word))
    return Caption(["<begin>", "<end>", *words])


def train(network: Caption, data: Path, trainer: Trainer, is_blind: bool = False) -> None:
    """Cross entropy of the next word. A scene's sentence is the one written for it, or any other sentence of train that
    is true of it; scenes are those of train, and four times as many that are put together from their boxes. Of the
    true sentences, those come up most that people wrote often and that are true of few scenes. is_blind: every picture
    is black."""
    parts = load(data)
    place = {word: i for i, word in enumerate(network.words)}
    rng = np.random.default_rng(torch.initial_seed())
    known = [each for each in parts["train"] if all(word in place for word in each.sentence.split())]
    counts = Counter(each.sentence for each in known if scenes.meaning(each.sentence) is not None)
    sentences = sorted(counts)
    examples = parts["train"] + mixed(parts["train"], 4 * len(parts["train"]), rng)
    is_true = true_sentences([each.scene for each in examples], sentences)
    weights = is_true * (np.array([counts[s] for s in sentences]) / np.maximum(is_true.mean(axis=0), 0.01))
    ids = [[BEGIN, *(place[word] for word in text.split()), END] for text in sentences]
    own = {
        i: [BEGIN, *(place[word] for word in each.sentence.split()), END]
        for i, each in enumerate(parts["train"])
        if all(word in place for word in each.sentence.split())
    }
    usable = [i for i in range(len(examples)) if weights[i].any()]
    pictures = torch.from_numpy(np.stack([each.picture for each in examples]))
    size, num_epochs, done = 48, trainer.max_epochs or 30, 0
    num_steps = num_epochs * math.ceil(len(usable) / size)
    valid_true = true_sentences([each.scene for each in parts["valid"]], sentences)
    valid = [
        (i, ids[int(s)])
        for i, row in enumerate(valid_true)
        if row.any()
        for s in np.random.default_rng(i).choice(np.flatnonzero(row), 2)
    ]
    valid_pictures = torch.from_numpy(np.stack([each.picture for each in parts["valid"]]))
    if is_blind:
        pictures, valid_pictures = torch.zeros_like(pictures), torch.zeros_like(valid_pictures)

    def loss_of(condition: Tensor, rows: list[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        x = torch.tensor([row + [END] * (longest - len(row)) for row in rows])
        # what follows a sentence's end is no target
        goal = torch.tensor([row[1:] + [-100] * (longest - len(row)) for row in rows])
        with torch.autocast("cpu", torch.bfloat16, enabled=network.training):
            state = network.prime(condition, torch.zeros(len(rows), network.state_size))
            logits, _ = network(x[:, :-1], state)
        return cross_entropy(logits.float().flatten(0, 1), goal.flatten())

    def epoch() -> float:
        nonlocal done
        total, order = 0.0, rng.permutation(usable)
        for at in range(0, len(order), size):
            chosen = order[at : at + size]
            rows = [
                own[int(i)]
                if int(i) in own and rng.random() < 0.2
                else ids[rng.choice(len(ids), p=weights[i] / weights[i].sum())]
                for i in chosen
            ]
            share = done / num_steps
            for group in trainer.optimizer.param_groups:
                group["lr"] = 3e-3 * min(1.0, 10 * share + 0.05) * max(0.5 * (1 + math.cos(math.pi * share)), 0.01)
            total += trainer.step(loss_of(pictures[torch.from_numpy(chosen)], rows))
            done += 1
        return total * size / len(order)

    def validate() -> float:
        return float(loss_of(valid_pictures[[i for i, _ in valid]], [row for _, row in valid]))

    trainer.fit(epoch, validate, num_epochs=num_epochs, patience=num_epochs)


@torch.no_grad()
def generate(network: Caption, pictures: np.ndarray) -> list[str]:
    """A sentence for each picture, uint8 [n, 50, 200, 3]: the likeliest word each time (temperature 0)."""
    state = network.prime(torch.from_numpy(pictures), torch.zeros(len(pictures), network.state_size))
    x, alive = torch.full((len(pictures), 1), BEGIN), torch.arange(len(pictures))
    made: list[list[str]] = [[] for _ in pictures]
    for _ in range(MAX_STEPS):
        logits, state = network(x, state)
        x = logits.argmax(dim=-1)
        goes_on = x[:, 0] != END
        x, state, alive = x[goes_on], state[goes_on], alive[goes_on]
        if not len(alive):
            break
        for i, word in zip(alive.tolist(), x[:, 0].tolist(), strict=True):
            made[i].append(network.words[word])
    return [" ".join(words) for words in made]


# The same network, data and seed with every picture black, in training too (`cellar-models ablate caption` trains
# it): it always says "there is a box with a yellow circle and a blue circle", which is true of this share of test.
TRAINED_BLIND = 0.0702


def evaluate(network: Caption, data: Path, num_mixed: int = 1000) -> Result:
    """The share of test scenes of which the sentence, said at temperature 0, is true; beside the same network that is
    shown another scene's picture, and beside fixed sentences."""
    parts = load(data)
    test = [each.scene for each in parts["test"]]
    pictures = np.stack([each.picture for each in parts["test"]])
    said = generate(network, pictures)
    judged, ours = shares(said, test)
    unseen = of_other_scenes(said, test)
    black = generate(network, np.zeros_like(pictures))
    fixed = of_fixed_sentences(parts["train"], test)
    others = mixed(parts["test"], num_mixed, np.random.default_rng(SPLIT_SEED))
    on_mixed = shares(
        [
            s
            for at in range(0, num_mixed, 100)
            for s in generate(network, np.stack([e.picture for e in others[at : at + 100]]))
        ],
        [each.scene for each in others],
    )
    written = [scenes.is_true(each.sentence, each.scene) for part in parts.values() for each in part]
    return Result(
        metrics={"true of the scene, of all sentences said": ours},
        baselines={
            "the same sentences, each of another scene of its kind": unseen,
            "the same network trained blind": TRAINED_BLIND,
            "the network with a black picture": shares(black, test)[1],
            "the most frequent sentence": fixed.frequent[0],
            "the ten most frequent, mean": float(np.mean(fixed.frequent)),
            "the sentence that is true most often in train": fixed.of_safest,
        },
        unit=f"shares of {len(test)} test scenes",
        is_better=ours > max(unseen, TRAINED_BLIND, *fixed.frequent),
        notes=(
            "A tenth of the sentences, with their scenes, is test, another validation (seed "
            f"{SPLIT_SEED}); what can only be judged by guess counts as not true. A bare number means exactly so many, "
            f'"a" at least one. "{fixed.safest}" is the sentence that is true most often in train, and says the least. '
            "No caption figure is published for these data."
        ),
        more={
            "sentences that can be judged": judged,
            "true, of those that can be judged": ours / max(judged, 1e-9),
            f"true of {num_mixed} scenes put together from test boxes": on_mixed[1],
            "different sentences said": float(len(set(said))),
            "sentences said that stand so in train": float(
                np.mean([s in {each.sentence for each in parts["train"]} for s in said])
            ),
            "people's sentences that can be judged": float(np.mean([each is not None for each in written])),
            "people's sentences that are judged true, of those": float(
                np.mean([each for each in written if each is not None])
            ),
        },
    )


def write_samples(folder: Path, data: Path) -> None:
    """Twenty test pictures as one array, and for each what is in its boxes, as JSON lines."""
    chosen = load(data)["test"][:20]
    np.savez_compressed(folder / "pictures.npz", pictures=np.stack([each.picture for each in chosen]))
    rows = [
        {
            "sentence": each.sentence,
            "structured_rep": [
                [{"x_loc": i.x, "y_loc": i.y, "size": i.size, "type": i.shape, "color": i.color} for i in box]
                for box in each.scene
            ],
        }
        for each in chosen
    ]
    (folder / "scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def ablate(data: Path, max_epochs: int | None) -> str:
    """Trains the network blind: what it says, and how often that is true of a test scene."""
    network = build(data)
    train(network, data, Trainer(network, max_epochs=max_epochs), is_blind=True)
    test = load(data)["test"]
    said = generate(network, np.zeros((len(test), HEIGHT, WIDTH, 3), np.uint8))
    return f'"{said[0]}": true of {shares(said, [each.scene for each in test])[1]:.4f} of {len(test)} test scenes'
