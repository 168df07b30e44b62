"""Who judges the tunes that `melody` makes: the reader of ABC, the metre, a classifier of genres, the training tunes;
and an n-gram model of the same tokens to stand beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from cellar_models import tunes
from cellar_models.melody_data import GENRES, Example, condition_of, ids_of

if TYPE_CHECKING:
    from cellar_models.melody import Melody


@dataclass(frozen=True)
class Figures:
    """Shares of a draw of tunes: read as ABC; with right bars and repeats besides; whose genre is recognised, by genre;
    that ended by themselves; that differ from all others; and of their runs of four bars those that stand in train."""

    reads: float
    fits: float
    recognised: dict[str, float]
    ended: float
    different: float
    copied: float

    @property
    def genre(self) -> float:
        """Share whose genre is recognised, mean of the genres."""
        return float(np.mean(list(self.recognised.values())))


class Judges:
    """Made from the training tunes."""

    def __init__(self, train: list[Example]) -> None:
        self.classifier = GenreClassifier([(each.genre, each.tokens) for each in train])
        self.known = {run for example in train for run in _runs(example.tokens)}

    def figures(self, made: list[list[str]], genres: list[str], max_steps: int = 600) -> Figures:
        """Of tunes that were asked for by these genres, cut after `max_steps` tokens."""
        reads, fits = judge(made)
        return Figures(
            float(np.mean(reads)),
            float(np.mean(fits)),
            self.recognised(made, genres),
            float(np.mean([len(each) < max_steps for each in made])),
            len({"".join(each) for each in made}) / len(made),
            self.copied(made),
        )

    def recognised(self, made: list[list[str]], genres: list[str]) -> dict[str, float]:
        """Share of each genre's tunes that the classifier takes for it."""
        named, wanted = np.array(self.classifier.guess(made)), np.array(genres)
        return {genre: float(np.mean(named[wanted == genre] == genre)) for genre in GENRES}

    def copied(self, made: list[list[str]]) -> float:
        """Share of the runs of four bars, chords aside, that stand so in a training tune, in the same key."""
        found = [run in self.known for tokens in made for run in _runs(tokens)]
        return sum(found) / max(1, len(found))


def _runs(tokens: list[str], num_bars: int = 4) -> list[tuple[str, ...]]:
    body = "".join(t for t in tokens if t.strip() and t[0] != '"' and not t.startswith(("X:", "M:", "K:")))
    bars = [bar for bar in "".join("|" if c in ":|]" else c for c in body).split("|") if bar]
    return [tuple(bars[i : i + num_bars]) for i in range(len(bars) - num_bars + 1)]


class GenreClassifier:
    """Naive Bayes on runs of one to four tokens of a tune's body: notes, lengths and bar lines, without chords, spaces
    and fields."""

    def __init__(self, examples: list[tuple[str, list[str]]]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.naive_bayes import MultinomialNB
        from sklearn.pipeline import make_pipeline

        self.model = make_pipeline(
            CountVectorizer(ngram_range=(1, 4), analyzer="word", token_pattern=r"\S+", lowercase=False, binary=True),
            MultinomialNB(alpha=0.1, fit_prior=False),
        )
        self.model.fit([self._text(tokens) for _, tokens in examples], [genre for genre, _ in examples])

    @staticmethod
    def _text(tokens: list[str]) -> str:
        return " ".join(token for token in tokens if token.strip() and token[0] != '"' and ":" not in token[:2])

    def guess(self, tokens: list[list[str]]) -> list[str]:
        """The likeliest genre of each tune."""
        return list(self.model.predict([self._text(each) for each in tokens]))


def judge(made: list[list[str]]) -> tuple[list[bool], list[bool]]:
    """Of each tune: whether its text is read as ABC, and whether its bars and repeats are right besides."""
    reads, fits = [], []
    for tokens in made:
        try:
            problems = tunes.parse("".join(tokens)).problems()
        except tunes.TuneError:
            reads.append(False)
            fits.append(False)
            continue
        reads.append(True)
        fits.append(not problems)
    return reads, fits


def nats(network: Melody, examples: list[Example]) -> float:
    """Mean nats of a character of the bodies, their ends counted as one, given genre, metre and key."""
    total, characters = 0.0, 0
    for example in examples:
        ids = ids_of(network.words, example)
        if ids is None:
            continue
        state = network.prime(torch.from_numpy(condition_of(example.genre))[None], torch.zeros(1, network.state_size))
        with torch.no_grad():
            logits, _ = network(torch.tensor([ids[:-1]]), state)
        losses = cross_entropy(logits[0], torch.tensor(ids[1:]), reduction="none")
        # the first three tokens are the opening, metre and key
        total += float(losses[3:].sum())
        characters += len(example.body) + 1
    return total / characters


def ngram_nats(network: Melody, learn: list[Example], test: list[Example], order: int = 5) -> float:
    """The same measure of an interpolated n-gram model of the same tokens (Witten and Bell, 1991)."""
    counts: list[dict[tuple[int, ...], dict[int, int]]] = [{} for _ in range(order)]
    for example in learn:
        read = ids_of(network.words, example) or []
        for i in range(1, len(read)):
            for n in range(min(order, i + 1)):
                seen = counts[n].setdefault(tuple(read[i - n : i]), {})
                seen[read[i]] = seen.get(read[i], 0) + 1
    total, characters = 0.0, 0
    for example in test:
        ids = ids_of(network.words, example)
        if ids is None:
            continue
        for i in range(4, len(ids)):
            chance = 1.0 / len(network.words)
            for n in range(min(order, i + 1)):
                known = counts[n].get(tuple(ids[i - n : i]))
                if known:
                    num, kinds = sum(known.values()), len(known)
                    chance = (known.get(ids[i], 0) + kinds * chance) / (num + kinds)
            total -= math.log(chance)
        characters += len(example.body) + 1
    return total / characters
