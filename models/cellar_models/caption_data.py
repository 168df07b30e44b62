"""What `caption` learns from: scenes with their pictures and sentences, split, and put together anew."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellar_models import scenes
from cellar_models.data import read, read_bytes

CAPTIONS_SHA256 = "3e8d31e1c3885f39552141b1024c94aa97eb3a0ed0724c6ab08a5a830e017ba3"
IMAGES_SHA256 = "b82510d10f7a4a08d347fe8234b321b9bcec6f28aa8c592c8d9c50aca612774e"
HEIGHT, WIDTH, BOX_WIDTH, BOX_STEP = 50, 200, 50, 75
SPLIT_SEED = 5


@dataclass(frozen=True)
class Captioned:
    """A scene of the data, its picture uint8 [50, 200, 3], and the sentence that was written for it."""

    sentence: str
    scene: scenes.Scene
    picture: np.ndarray


def words_of(sentence: str) -> str:
    """A sentence as it is learnt: lower case, no points, and a cut-off first letter put back."""
    text = " ".join(re.sub(r"[.,;]", " ", sentence.lower()).split())
    return re.sub(r"^(ll|t least|tleast) ", lambda m: {"ll": "all "}.get(m[1], "at least "), text)


def load(data: Path) -> dict[str, list[Captioned]]:
    """1,649 scenes: a tenth of the sentences are held out for test, another for validation; sentences that say the same
    in other spellings stay together. The parts' order and members follow from SPLIT_SEED."""
    rows = [json.loads(line) for line in read(data, "captions_nlvr", "captions.jsonl", CAPTIONS_SHA256).splitlines()]
    packed = read_bytes(data, "captions_nlvr", "images_50x200.npz", IMAGES_SHA256)
    with np.load(io.BytesIO(packed)) as file:
        pictures = file["images"]
    kinds = sorted({scenes.plain(row["sentence"]) for row in rows})
    place = dict(zip(kinds, np.random.default_rng(SPLIT_SEED).permutation(len(kinds)) % 10, strict=True))
    parts: dict[str, list[Captioned]] = {"train": [], "valid": [], "test": []}
    for row in rows:
        part = {0: "test", 1: "valid"}.get(int(place[scenes.plain(row["sentence"])]), "train")
        scene = scenes.scene_of(row["structured_rep"])
        parts[part].append(Captioned(words_of(row["sentence"]), scene, pictures[row["i"]]))
    return parts


def true_sentences(examples: list[scenes.Scene], sentences: list[str]) -> np.ndarray:
    """bool [examples, sentences]: which of the sentences, all of forms that are understood, are true of each scene."""
    tests = [scenes.meaning(sentence) for sentence in sentences]
    return np.array([[test is not None and test(scene) for test in tests] for scene in examples])


def mixed(examples: list[Captioned], num: int, rng: np.random.Generator) -> list[Captioned]:
    """New scenes, each of three boxes of the given ones of a kind (stacks, or items that lie about); no sentence."""
    by_kind = [[e for e in examples if scenes.is_towers(e.scene) == kind] for kind in (True, False)]
    made = []
    for _ in range(num):
        several = by_kind[int(rng.random() > len(by_kind[0]) / len(examples))]
        picture = np.array(several[0].picture)
        boxes = []
        for k in range(3):
            source, j = several[rng.integers(0, len(several))], int(rng.integers(0, 3))
            boxes.append(source.scene[j])
            picture[:, k * BOX_STEP : k * BOX_STEP + BOX_WIDTH] = source.picture[
                :, j * BOX_STEP : j * BOX_STEP + BOX_WIDTH
            ]
        made.append(Captioned("", tuple(boxes), picture))
    return made
