"""What a network that translates says: the likeliest piece at every step, or a search; and how good that is."""

from __future__ import annotations

import math
import re

import numpy as np
import torch

from cellar_models.network import Network
from cellar_models.pieces import BEGIN, END


@torch.no_grad()
def greedy(network: Network, sources: list[list[int]], max_steps: int = 60) -> list[list[int]]:
    """The most likely next piece until the end, for each source's ids, which end with the end id."""
    found: list[list[int]] = [[] for _ in sources]
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(sources):
        by_length.setdefault(len(ids), []).append(i)
    for rows in by_length.values():
        state = network.prime(torch.tensor([sources[i] for i in rows]), torch.zeros(len(rows), network.state_size))
        x = torch.full((len(rows), 1), BEGIN)
        open_rows = torch.ones(len(rows), dtype=torch.bool)
        for _ in range(max_steps):
            logits, state = network(x, state)
            x = logits[:, -1:].argmax(-1)
            open_rows &= x[:, 0] != END
            if not open_rows.any():
                break
            for k in torch.flatten(open_rows.nonzero()).tolist():
                found[rows[k]].append(int(x[k, 0]))
    return found


@torch.no_grad()
def beam(network: Network, source: list[int], num_beams: int = 4, max_steps: int = 60) -> list[int]:
    """Of `num_beams` finished translations of a source's ids the one with the highest mean log-probability, as a client
    searches by forks."""
    state = network.prime(torch.tensor([source]), torch.zeros(1, network.state_size))
    beams: list[tuple[float, list[int]]] = [(0.0, [BEGIN])]
    done: list[tuple[float, list[int]]] = []
    for _ in range(max_steps):
        logits, state = network(torch.tensor([[ids[-1]] for _, ids in beams]), state)
        best = torch.log_softmax(logits[:, 0], dim=-1).topk(num_beams)
        grown = [
            (score + value, ids, token, row)
            for row, (score, ids) in enumerate(beams)
            for value, token in zip(best.values[row].tolist(), best.indices[row].tolist(), strict=True)
        ]
        grown = sorted(grown, key=lambda each: -each[0])[:num_beams]
        done += [(score / len(ids), ids[1:]) for score, ids, token, _ in grown if token == END]
        going = [each for each in grown if each[2] != END]
        if len(done) >= num_beams or not going:
            break
        beams = [(score, [*ids, token]) for score, ids, token, _ in going]
        state = state[[row for *_, row in going]]
    return max(done)[1] if done else beams[0][1][1:]


def scores(found: list[str], references: list[str]) -> dict[str, float]:
    """Corpus BLEU (13a) and chrF of sacrebleu, one reference each, 0 to 100."""
    import sacrebleu

    return {
        "BLEU": sacrebleu.corpus_bleu(found, [references]).score,
        "chrF": sacrebleu.corpus_chrf(found, [references]).score,
    }


def nearest(train: list[tuple[str, str]], sources: list[str]) -> list[str]:
    """The French of the training sentence that shares the most with each source, words weighted by their rarity."""
    words = [_words(s) for s, _ in train]
    lists: dict[str, list[int]] = {}
    for i, each in enumerate(words):
        for word in each:
            lists.setdefault(word, []).append(i)
    holders = {word: np.array(rows) for word, rows in lists.items()}
    weights = {word: math.log(len(train) / len(rows)) for word, rows in lists.items()}
    sizes = np.array([sum(weights[word] for word in each) for each in words])
    found = []
    for source in sources:
        shared, size = np.zeros(len(train)), 0.0
        for word in _words(source):
            size += weights.get(word, math.log(len(train)))
            if word in holders:
                shared[holders[word]] += weights[word]
        found.append(train[int((shared / (sizes + size - shared + 1e-9)).argmax())][1])
    return found


def _words(sentence: str) -> list[str]:
    """Each once, in one order whatever the hash seed: sums of weights have the same bits each time."""
    return sorted(set(re.findall(r"\w+", sentence.lower())))
