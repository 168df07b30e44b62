"""`python -m cellar_models.multi30k`: the recipe of `translate` on Multi30k, German to English. Evaluated only: the
data name no licence, so nothing made from them is shipped.

The published figures (github.com/bentrevett/pytorch-seq2seq) are of lower-case words by spaCy; so text is lower-case
here too, and BLEU is sacrebleu's with its own tokens (13a) of lower-case text.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from cellar_models.data import data_folder, read
from cellar_models.decoding import beam, greedy, scores
from cellar_models.pieces import source_pieces, target_pieces
from cellar_models.training import Trainer
from cellar_models.translate import Translate, encode, fit

FILES = {
    "train.de": "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    "train.en": "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    "val.de": "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    "val.en": "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    "test_2016_flickr.de": "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    "test_2016_flickr.en": "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
}
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cellar_models.multi30k", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the weights are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    learn, valid, test = (load(options.data, split) for split in ("train", "val", "test_2016_flickr"))
    network = Translate(
        source_pieces([s for s, _ in learn], 4000),
        target_pieces([t for _, t in learn], 4000),
        max_source=48,
    )
    begun, spent = time.process_time(), 0.0
    print(f"{sum(p.numel() for p in network.parameters())} parameters", flush=True)
    print("| epoch | CPU seconds | validation loss | BLEU on val, greedy |\n|---|---|---|---|", flush=True)
    number = 0

    def watch(loss: float) -> None:
        nonlocal number, spent
        number += 1
        cpu_s, at = time.process_time() - begun - spent, time.process_time()
        bleu = scores(translate_all(network, valid), [t for _, t in valid])["BLEU"]
        spent += time.process_time() - at
        print(f"| {number} | {cpu_s:.0f} | {loss:.3f} | {bleu:.1f} |", flush=True)

    fit(
        network,
        encode(network, learn),
        encode(network, valid),
        Trainer(network, is_quiet=True, max_epochs=options.epochs),
        options.epochs,
        watch,
    )
    options.runs.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": network.state_dict()}, options.runs / "multi30k.pt")
    for num_beams in (1, 4):
        found = scores(translate_all(network, test, num_beams), [t for _, t in test])
        print(f"test_2016_flickr, {num_beams} beams: BLEU {found['BLEU']:.1f}, chrF {found['chrF']:.1f}", flush=True)
    print("published BLEU: " + ", ".join(f"{name} {value}" for name, value in PUBLISHED.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
