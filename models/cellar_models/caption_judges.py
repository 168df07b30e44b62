"""How good sentences about scenes are; and those that stand beside a network's: of other scenes, or always the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from cellar_models import scenes
from cellar_models.caption_data import SPLIT_SEED, Captioned, true_sentences


def shares(sentences: list[str], test: list[scenes.Scene]) -> tuple[float, float]:
    """The share of sentences that can be judged, and of all of them the share that is true of its scene."""
    found = [scenes.is_true(sentence, scene) for sentence, scene in zip(sentences, test, strict=True)]
    return float(np.mean([each is not None for each in found])), float(np.mean([each is True for each in found]))


def of_other_scenes(said: list[str], test: list[scenes.Scene]) -> float:
    """The share that is true where each scene has the sentence of another of its kind (towers, or items that lie
    about): who does not look knows that much, and the words, and nothing else."""
    rng = np.random.default_rng(SPLIT_SEED)
    blind = np.arange(len(test))
    for kind in (True, False):
        rows = np.flatnonzero([scenes.is_towers(scene) == kind for scene in test])
        order = rng.permutation(rows)
        blind[order] = np.roll(order, 1)
    return shares([said[i] for i in blind], test)[1]


@dataclass(frozen=True)
class Fixed:
    """Shares of scenes of which a sentence that is always said is true: each of the ten most frequent in train, the
    most frequent first; and the one that is true most often in train."""

    frequent: list[float]
    safest: str
    of_safest: float


def of_fixed_sentences(train: list[Captioned], test: list[scenes.Scene]) -> Fixed:
    """Of sentences of train that can be judged."""
    counts = Counter(each.sentence for each in train if scenes.meaning(each.sentence) is not None)
    sentences = sorted(counts)
    on_train = true_sentences([each.scene for each in train], sentences).mean(axis=0)
    safest = sentences[int(on_train.argmax())]

    def share(sentence: str) -> float:
        return shares([sentence] * len(test), test)[1]

    return Fixed([share(sentence) for sentence, _ in counts.most_common(10)], safest, share(safest))
