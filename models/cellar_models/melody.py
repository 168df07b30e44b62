"""melody, one-to-many: a genre in, a dance tune in ABC out, token by token. An LSTM that counts bars as a player does.

What the tune is (genre, metre, key) and how far its bar and its section have come lie in the state row beside h and c;
both follow from the tokens so far by fixed rules, in whole numbers, so that they are exact however a tune is cut.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cellar_proto.v1.manifest_pb2 import EMISSIONS, ONE_TO_MANY, Generation, Manifest, StatePart, StepSpec
from cellar_proto.v1.tensor_pb2 import FLOAT32, INT64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from cellar_models import oracle, tunes
from cellar_models.melody_data import (
    BEGIN,
    END,
    GENRES,
    SPLIT_SEED,
    Example,
    ids_of,
    in_all_keys,
    load,
    opening,
    split,
)
from cellar_models.melody_draws import NUM_TUNES, SAMPLING, SEEDS, drawn
from cellar_models.melody_judges import Judges, nats, ngram_nats
from cellar_models.network import Network
from cellar_models.recurrent import Recurrent
from cellar_models.training import Result, Trainer

# Ticks of a bar and bars of a section that are told apart; a triplet's mark takes back one eighth beforehand.
MAX_TICKS, MAX_BARS = 131, 33


class Melody(Network):
    """x: int64 [batch, time] token ids -> y: float32 [batch, time, V] logits of the next token.

    prime(condition: float32 [batch, 4], a one for the genre) lays it into the state row. The row: h and c of the LSTM;
    the heading (genre, then metre and key once emitted); ticks since the bar line; bars since the section began.
    """

    name = "melody"
    has_prime = True
    marks: Tensor
    ticks: Tensor
    bars: Tensor
    is_line: Tensor
    is_section: Tensor

    def __init__(self, words: list[str], hidden_size: int = 288, embedding_size: int = 64) -> None:
        super().__init__()
        self.words = words
        headings = [word for word in words if word[:2] in ("M:", "K:")]
        self.num_headings = len(GENRES) + len(headings)
        marks = torch.zeros(len(words), self.num_headings)
        ticks, bars = torch.zeros(len(words)), torch.zeros(len(words))
        is_line, is_section = torch.zeros(len(words)), torch.zeros(len(words))
        for i, word in enumerate(words[2:], 2):
            match = tunes.TOKEN.match(word)
            assert match is not None
            if word in headings:
                marks[i, len(GENRES) + headings.index(word)] = 1.0
            elif match["note"]:
                ticks[i] = float(tunes.length_of(match["length"]) * tunes.TICKS_PER_EIGHTH)
            elif match["triplet"]:
                ticks[i] = -float(tunes.TICKS_PER_EIGHTH)
            elif match["bar"]:
                is_line[i] = bars[i] = 1.0
                is_section[i] = float(word in tunes.SECTIONS)
        for name, table in (("marks", marks), ("ticks", ticks), ("bars", bars)):
            self.register_buffer(name, table if table.dim() == 2 else table[:, None])
        self.register_buffer("is_line", is_line[:, None])
        self.register_buffer("is_section", is_section[:, None])
        self.embedding = nn.Embedding(len(words), embedding_size)
        self.tick_embedding = nn.Embedding(MAX_TICKS + 1, 24)
        self.bar_embedding = nn.Embedding(MAX_BARS + 1, 8)
        self.lstm = Recurrent("lstm", embedding_size + 32 + self.num_headings, hidden_size)
        self.dropout = nn.Dropout(0.4)
        self.head = nn.Linear(hidden_size, len(words))
        self.state_size = self.lstm.state_size + self.num_headings + 2

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        n, k = self.lstm.state_size, self.num_headings
        heading = (state[:, None, n : n + k] + torch.cumsum(embedding(x, self.marks), dim=1)).clamp(max=1.0)
        ticks = _counted(embedding(x, self.ticks), embedding(x, self.is_line), state[:, None, n + k : n + k + 1])
        bars = _counted(embedding(x, self.bars), embedding(x, self.is_section), state[:, None, n + k + 1 :])
        place = [
            self.embedding(x),
            self.tick_embedding(_place(ticks[..., 0] + tunes.TICKS_PER_EIGHTH, MAX_TICKS)),
            self.bar_embedding(_place(bars[..., 0], MAX_BARS)),
        ]
        y, recurrent = self.lstm(torch.cat([self.dropout(torch.cat(place, dim=-1)), heading], dim=-1), state[:, :n])
        y = self.head(self.dropout(y))
        return y, torch.cat([recurrent, heading[:, -1], ticks[:, -1], bars[:, -1]], dim=1)

    def prime(self, condition: Tensor, state: Tensor) -> Tensor:
        n = self.lstm.state_size
        return torch.cat([state[:, :n], condition, state[:, n + len(GENRES) :]], dim=1)

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n, k = self.lstm.state_size, self.num_headings
        marks, ticks_of, bars_of = (t.numpy().astype(np.float64) for t in (self.marks, self.ticks, self.bars))
        heading, ticks, bars = state[:, n : n + k], state[:, n + k : n + k + 1], state[:, n + k + 1 :]
        tables = [
            each.weight.detach().numpy().astype(np.float64)
            for each in (self.embedding, self.tick_embedding, self.bar_embedding)
        ]
        rows = []
        for t in range(x.shape[1]):
            word = x[:, t]
            heading = np.minimum(heading + marks[word], 1.0)
            ticks = np.where(self.is_line.numpy()[word] > 0, 0.0, ticks) + ticks_of[word]
            bars = np.where(self.is_section.numpy()[word] > 0, 0.0, bars + bars_of[word])
            at_tick = np.clip(ticks[:, 0] + tunes.TICKS_PER_EIGHTH, 0, MAX_TICKS).astype(int)
            at_bar = np.clip(bars[:, 0], 0, MAX_BARS).astype(int)
            rows.append(np.concatenate([tables[0][word], tables[1][at_tick], tables[2][at_bar], heading], axis=-1))
        y, recurrent = oracle.recurrent(self.lstm, np.stack(rows, axis=1), state[:, :n])
        return oracle.linear(self.head, y), np.concatenate([recurrent, heading, ticks, bars], axis=1)

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, len(self.words), (batch, time))

    def example_condition(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        return np.eye(len(GENRES), dtype=np.float32)[rng.integers(0, len(GENRES), batch)]

    def describe(self, manifest: Manifest, folder: Path) -> None:
        (folder / "vocabulary.json").write_text(json.dumps(self.words))
        manifest.description = "A genre (reel, jig, hornpipe, waltz) in, a tune in ABC notation out."
        manifest.mode = ONE_TO_MANY
        manifest.input.CopyFrom(StepSpec(dtype=INT64, vocabulary=len(self.words)))
        manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[len(self.words)]))
        manifest.prime.condition.CopyFrom(StepSpec(dtype=FLOAT32, shape=[len(GENRES)], names=GENRES))
        manifest.prime.name.names.extend(GENRES)
        manifest.generation.CopyFrom(
            Generation(
                begin_id=BEGIN,
                end_id=END,
                default_max_steps=600,
                max_steps=1000,
                vocabulary_file="vocabulary.json",
                default_temperature=SAMPLING.temperature,
                default_top_p=SAMPLING.top_p,
            )
        )
        manifest.position_unit = EMISSIONS
        manifest.architecture = f"LSTM, 1 layer of {self.lstm.hidden_size}, {len(self.words)} tokens"
        manifest.parts.extend(self.lstm.parts("lstm"))
        at = self.lstm.state_size
        for name, size in (("heading", self.num_headings), ("ticks_in_bar", 1), ("bars_in_section", 1)):
            manifest.parts.append(StatePart(name=name, offset=at, shape=[size]))
            at += size
        manifest.licence = "GNU GPLv3 (data and weights): models/zoo/melody/LICENSE.GPLv3"
        manifest.data = "Nottingham Music Database, E. Foxley; ABC cleaned by Jukedeck"


def _place(count: Tensor, most: int) -> Tensor:
    """A count as a row of a table; of a row that holds NaN the first, so that its batch-mates go on."""
    return torch.nan_to_num(count).clamp(0, most).long()


def _counted(adds: Tensor, resets: Tensor, start: Tensor) -> Tensor:
    """Sums of `adds` since the last reset, all [batch, time, 1]; what is added with a reset is lost.

    Sums of whole numbers: exact in any order, so however a sequence is cut.
    """
    time = adds.shape[1]
    epoch = torch.cumsum(resets, dim=1)
    since = (epoch == epoch.transpose(1, 2)).float() * torch.ones(time, time).tril()  # [batch, time, time before]
    return torch.matmul(since, adds * (1.0 - resets)) + (epoch == 0).float() * start


def build(data: Path) -> Melody:
    """The vocabulary: all tokens of the training tunes, moved to other keys too, that three or more have."""
    counts: dict[str, int] = {}
    for example in split(load(data)[0])["train"]:
        for each in in_all_keys(example):
            for word in set(each.tokens):
                counts[word] = counts.get(word, 0) + 1
    openings = [opening(genre) for genre in GENRES]
    words = sorted((w for w, n in counts.items() if n >= 3 and w not in openings), key=lambda w: (-counts[w], w))
    return Melody(["<begin>", "<end>", *openings, *words])


def train(network: Melody, data: Path, trainer: Trainer) -> None:
    """Cross entropy of the next token; each tune once an epoch, in its own key or another at equal chances; the
    learning rate rises and falls once (Smith and Topin, 2019) over 50 epochs; large products in bfloat16."""
    parts = split(load(data)[0])
    place = {word: i for i, word in enumerate(network.words)}

    def rows_of(examples: list[Example]) -> list[tuple[int, list[int]]]:
        return [
            (GENRES.index(each.genre), [BEGIN, *(place[word] for word in each.tokens), END])
            for each in examples
            if all(word in place for word in each.tokens)
        ]

    learn = [rows for each in parts["train"] if (rows := rows_of(in_all_keys(each)))]
    valid = rows_of(parts["valid"])
    size, num_epochs = 16, trainer.max_epochs or 50
    num_steps, highest, done = num_epochs * math.ceil(len(learn) / size), 4e-3, 0

    def loss_of(rows: list[tuple[int, list[int]]]) -> tuple[Tensor, int]:
        longest = max(len(ids) for _, ids in rows)
        x = torch.tensor([ids + [END] * (longest - len(ids)) for _, ids in rows])
        # what follows a tune's end is no target
        goal = torch.tensor([ids[1:] + [-100] * (longest - len(ids)) for _, ids in rows])
        condition = torch.eye(len(GENRES))[[genre for genre, _ in rows]]
        with torch.autocast("cpu", torch.bfloat16, enabled=network.training):
            logits, _ = network(x[:, :-1], network.prime(condition, torch.zeros(len(rows), network.state_size)))
        return cross_entropy(logits.float().flatten(0, 1), goal.flatten()), int((goal >= 0).sum())

    def epoch() -> float:
        nonlocal done
        rows = []
        for several in learn:
            other = int(torch.randint(1, len(several), ())) if len(several) > 1 and torch.rand(()) < 0.5 else 0
            rows.append(several[other])
        # like lengths together, so that little of a batch lies behind the ends
        rows.sort(key=lambda row: len(row[1]) + 8 * float(torch.rand(())))
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        total = 0.0
        for k in torch.randperm(len(batches)).tolist():
            share = done / num_steps
            rate = share / 0.1 if share < 0.1 else 0.5 * (1 + math.cos(math.pi * (share - 0.1) / 0.9))
            for group in trainer.optimizer.param_groups:
                group["lr"] = highest * max(rate, 0.01)
            total += trainer.step(loss_of(batches[k])[0])
            done += 1
        return total / len(batches)

    def validate() -> float:
        losses = [loss_of(valid[i : i + 32]) for i in range(0, len(valid), 32)]
        return sum(float(loss) * count for loss, count in losses) / sum(count for _, count in losses)

    trainer.fit(epoch, validate, num_epochs=num_epochs, patience=num_epochs)


def evaluate(network: Melody, data: Path, num_tunes: int = NUM_TUNES, seeds: Sequence[int] = SEEDS) -> Result:
    """Nats a character on the held-out tenth; tunes sampled from each seed, a quarter of each genre, judged by the
    reader of ABC, by the metre, and by a classifier that was trained on real tunes."""
    examples, num_refused = load(data)
    parts = split(examples)
    judges = Judges(parts["train"])
    found = drawn(network, judges, SAMPLING, seeds, num_tunes)

    def mean(name: str) -> float:
        return float(np.mean([getattr(each, name) for each in found]))

    reads = [each.reads for each in found]
    recognised = {genre: float(np.mean([each.recognised[genre] for each in found])) for genre in GENRES}
    test_genres = [each.genre for each in parts["test"]]
    real = judges.recognised([each.tokens for each in parts["test"]], test_genres)
    ours, ngrams = nats(network, parts["test"]), ngram_nats(network, parts["train"], parts["test"])
    num_unknown = sum(ids_of(network.words, each) is None for each in parts["test"])
    return Result(
        metrics={
            "tunes that are read as ABC": mean("reads"),
            "tunes whose bars and repeats are right besides": mean("fits"),
            "tunes whose genre is recognised": float(np.mean(list(recognised.values()))),
            "test nats a character": ours,
        },
        baselines={"nats a character, 5-grams of the same tokens": ngrams, "genre by chance": 1 / len(GENRES)},
        unit=f"shares of {len(seeds)} draws of {num_tunes} tunes at {SAMPLING}; nats",
        is_better=ours < ngrams and float(np.mean(list(recognised.values()))) > 0.5,
        notes=(
            f"{len(examples)} tunes; {num_refused} of these genres were left out because they cannot be read or their "
            "bars do not add up as printed. A tenth of each genre is test, another validation (seed "
            f"{SPLIT_SEED}); {num_unknown} of the test tunes hold a token that train lacks and are not in the nats. "
            "The text is the data's, written anew: lengths in eighths, no part marks, slurs or ornaments, chords "
            "without their bass. Right bars: each is as long as the metre says, but for a section's pick-up and the "
            "bar that it completes; endings alternate; the last bar is closed. The classifier is naive Bayes on runs "
            f"of one to four notes and bar lines, without chords and fields. How to draw ({SAMPLING}) was chosen on "
            "draws from other seeds (`python -m cellar_models.melody_draws`); it is the model's own "
            "where a caller does not say.\n"
            "No int8: after 16 steps it differs from "
            "float32 by 0.35 of the largest output; 0.25 is the most that is allowed."
        ),
        more={
            "tunes that are read, the worst draw": min(reads),
            "tunes that are read, the best draw": max(reads),
            **{f"{genre}: genre recognised": share for genre, share in recognised.items()},
            "classifier on held-out real tunes": float(
                np.average([real[genre] for genre in GENRES], weights=[test_genres.count(genre) for genre in GENRES])
            ),
            "classifier on held-out real tunes, mean of genres": float(np.mean(list(real.values()))),
            "tunes that ended by themselves (600 tokens)": mean("ended"),
            "tunes of a draw that differ from all others": mean("different"),
            "runs of four bars that stand in train": mean("copied"),
            "the same of held-out real tunes": judges.copied([each.tokens for each in parts["test"]]),
            "test tunes": float(len(parts["test"])),
        },
    )


def write_samples(folder: Path, data: Path) -> None:
    """The genres, as conditions; and the first test tune of each."""
    parts = split(load(data)[0])
    (folder / "genres.txt").write_text("\n".join(GENRES) + "\n")
    for genre in GENRES:
        example = next(each for each in parts["test"] if each.genre == genre)
        (folder / f"{genre}.abc").write_text(example.text + "\n")
