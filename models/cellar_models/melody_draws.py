"""Tunes drawn from `melody`, many at once; `python -m cellar_models.melody_draws` says what each way to draw gives."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cellar_models.data import data_folder
from cellar_models.export import read_weights
from cellar_models.melody_data import BEGIN, END, GENRES, condition_of, load, split
from cellar_models.melody_judges import Figures, Judges
from cellar_models.training import training_numbers

if TYPE_CHECKING:
    from cellar_models.melody import Melody


@dataclass(frozen=True)
class Sampling:
    """How a next token is drawn: see cellar.v1.Sampling. top_p 1: among all."""

    temperature: float
    top_p: float = 1.0

    def __str__(self) -> str:
        return f"temperature {self.temperature:g}" + (f", top_p {self.top_p:g}" if self.top_p < 1 else "")


# What the command says of these, on the seeds to choose by, is why the card's is what it is.
SAMPLINGS = [
    *(Sampling(each) for each in (0.7, 0.75, 0.8)),
    *(Sampling(*each) for each in ((0.8, 0.95), (0.9, 0.95), (0.9, 0.9), (1.0, 0.9))),
]
SAMPLING = Sampling(0.8, 0.95)
NUM_TUNES = 400
SEEDS, SEEDS_TO_CHOOSE = range(8), range(100, 102)


@torch.no_grad()
def generate(
    network: Melody, genres: list[str], sampling: Sampling = SAMPLING, max_steps: int = 600, seed: int = 0
) -> list[list[str]]:
    """A tune's tokens for each genre, sampled together; one that has not ended after `max_steps` is cut there."""
    random = torch.Generator().manual_seed(seed)
    condition = torch.from_numpy(np.stack([condition_of(genre) for genre in genres]))
    state = network.prime(condition, torch.zeros(len(genres), network.state_size))
    x, alive = torch.full((len(genres), 1), BEGIN), torch.arange(len(genres))
    made: list[list[str]] = [[] for _ in genres]
    for _ in range(max_steps):
        logits, state = network(x, state)
        chances = torch.softmax(logits[:, 0] / sampling.temperature, dim=-1)
        if sampling.top_p < 1.0:
            chances = likeliest(chances, sampling.top_p)
        following = torch.multinomial(chances, 1, generator=random)
        goes_on = following[:, 0] != END
        x, state, alive = following[goes_on], state[goes_on], alive[goes_on]
        if not len(alive):
            break
        for tune, token in zip(alive.tolist(), x[:, 0].tolist(), strict=True):
            made[tune].append(network.words[token])
    return made


def likeliest(chances: Tensor, top_p: float) -> Tensor:
    """Of chances [rows, V] the fewest largest that reach top_p, the others 0, as the server's sampler cuts them."""
    largest, order = chances.sort(dim=-1, descending=True)
    before = largest.cumsum(dim=-1) - largest
    return torch.zeros_like(chances).scatter(-1, order, largest * (before < top_p))


def drawn(network: Melody, judges: Judges, sampling: Sampling, seeds: Iterable[int], num_tunes: int) -> list[Figures]:
    """Of each seed the figures of so many tunes, the same number of each genre."""
    genres = [genre for genre in GENRES for _ in range(num_tunes // len(GENRES))]
    return [judges.figures(generate(network, genres, sampling, seed=seed), genres) for seed in seeds]


def main(arguments: list[str] | None = None) -> int:
    """Says what each sampling gives, by which one is chosen."""
    parser = argparse.ArgumentParser(prog="python -m cellar_models.melody_draws", description=main.__doc__)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--zoo", type=Path, default=Path("models/zoo"), help="whose weights are taken")
    parser.add_argument("--tunes", type=int, default=NUM_TUNES, help="a draw, of each of the seeds")
    options = parser.parse_args(arguments)
    from cellar_models.melody import build

    network = build(options.data)
    network.load_state_dict(read_weights(options.zoo / "melody" / "1"))
    network.eval()
    judges = Judges(split(load(options.data)[0])["train"])
    print(
        "| sampling | read | right bars | genre recognised | ended | different | runs of train |\n" + "|---" * 7 + "|"
    )
    with training_numbers():
        for sampling in SAMPLINGS:
            found = drawn(network, judges, sampling, SEEDS_TO_CHOOSE, options.tunes)
            means = [
                float(np.mean([getattr(each, name) for each in found]))
                for name in ("reads", "fits", "genre", "ended", "different", "copied")
            ]
            print("| " + " | ".join([str(sampling), *(f"{value:.3f}" for value in means)]) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
