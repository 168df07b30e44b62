"""`python -m cellar_models.multi30k`: the recipe of `translate` on Multi30k, German to English. Evaluated only: the
data name no licence, so nothing made from them is shipped.

The published figures (github.com/bentrevett/pytorch-seq2seq) are of lower-case words by spaCy; so text is lower-case
here too, and BLEU is sacrebleu's with its own tokens (13a) of lower-case text.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from cellar_models.data import data_folder, read
from cellar_models.decoding import beam, greedy, scores
from cellar_models.encoder_decoder import Translate
from cellar_models.pieces import source_pieces, target_pieces
from cellar_models.training import Trainer, training_numbers
from cellar_models.translate import encode, fit

FILES = {
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
}
NUM_PIECES, HIDDEN_SIZE = 4000, 192
# One-layer GRU without attention, and with it, as published: BLEU on test2016.
PUBLISHED = {"LSTM": 13.8, "GRU": 20.6, "GRU with attention": 28.3}


def load(data: Path, split: str) -> list[tuple[str, str]]:
    """Pairs (German, English) in lower case: 29,000 train, 1,014 val, 1,000 test_2016_flickr."""
    sides = [
        read(data, "translation_multi30k", f"{split}.{side}", FILES[f"{split}.{side}"]).lower().splitlines()
        for side in ("de", "en")
    ]
    return [(de.strip(), en.strip()) for de, en in zip(*sides, strict=True)]


def translate_all(network: Translate, pairs: list[tuple[str, str]], num_beams: int = 1) -> list[str]:
    """The English of each pair's German."""
    sources = [source for source, _ in encode(network, pairs)]
    found = greedy(network, sources) if num_beams == 1 else [beam(network, s, num_beams) for s in sources]
    return [network.target.decode(ids) for ids in found]


def study(data: Path, num_epochs: int, seed: int, runs: Path) -> dict[str, Any]:
    """Trains and evaluates: parameters, the learning curve as rows of (epoch, seconds of training, loss on val, greedy
    BLEU on val), hours of training, and BLEU and chrF on test by number of beams. Time is CPU time; what it takes to
    follow BLEU is not in it. The weights go to `runs`."""
    torch.manual_seed(seed)
    learn, valid, test = (load(data, split) for split in ("train", "val", "test_2016_flickr"))
    network = Translate(
        source_pieces([s for s, _ in learn], NUM_PIECES),
        target_pieces([t for _, t in learn], NUM_PIECES),
        hidden_size=HIDDEN_SIZE,
        max_source=48,
    )
    curve: list[tuple[int, int, float, float]] = []
    begun, spent = time.process_time(), 0.0
    print("| epoch | CPU seconds | loss on val | BLEU on val, greedy |\n|---|---|---|---|", flush=True)

    def watch(loss: float) -> None:
        nonlocal spent
        at = time.process_time()
        bleu = scores(translate_all(network, valid), [t for _, t in valid])["BLEU"]
        curve.append((len(curve) + 1, round(at - begun - spent), round(loss, 3), round(bleu, 1)))
        spent += time.process_time() - at
        print("| " + " | ".join(map(str, curve[-1])) + " |", flush=True)

    trainer = Trainer(network, is_quiet=True, max_epochs=num_epochs)
    fit(network, encode(network, learn), encode(network, valid), trainer, num_epochs, watch)
    hours = (time.process_time() - begun - spent) / 3600
    runs.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": network.state_dict()}, runs / "multi30k.pt")
    tested = {}
    for num_beams in (1, 4):
        found = scores(translate_all(network, test, num_beams), [t for _, t in test])
        tested[str(num_beams)] = {name: round(value, 1) for name, value in found.items()}
        print(f"test_2016_flickr, {num_beams} beams: BLEU {found['BLEU']:.1f}, chrF {found['chrF']:.1f}", flush=True)
    print("published BLEU: " + ", ".join(f"{name} {value}" for name, value in PUBLISHED.items()))
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "hidden_size": HIDDEN_SIZE,
        "pieces": [network.source.get_vocab_size(), network.target.get_vocab_size()],
        "seed": seed,
        "cpu_hours": round(hours, 2),
        "curve": curve,
        "test": tested,
        "published": PUBLISHED,
    }


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints its learning curve and scores, and keeps them where `--findings` says."""
    parser = argparse.ArgumentParser(prog="python -m cellar_models.multi30k", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the weights are kept")
    parser.add_argument("--findings", type=Path, help="a JSON file to write (docs/zoo.md is made from docs/zoo/)")
    options = parser.parse_args(arguments)
    with training_numbers():
        found = study(options.data, options.epochs, options.seed, options.runs)
    if options.findings:
        options.findings.parent.mkdir(parents=True, exist_ok=True)
        options.findings.write_text(json.dumps(found) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
