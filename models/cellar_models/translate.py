"""translate, many-to-many: an English sentence in, a French one out, piece by piece; attention over the state row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cellar_models.data import read
from cellar_models.decoding import beam, greedy, nearest, scores
from cellar_models.encoder_decoder import Translate
from cellar_models.pieces import BEGIN, END, source_pieces, target_pieces
from cellar_models.training import Result, Trainer

FILES = {
    "train": "e91655b4a661a2499ba156fb23fc8fa6002e5da163a7945574eaa50e475e6d2b",
    "dev": "bcad58a3fcb9dd945c7131df6f9aac77de419e2dec0786bc02f4dda2092fd411",
    "test": "1eba40ccd495227a3dbfdba933fb79d184908a48ad38a7f7baa15e71582007bb",
}
Pair = tuple[list[int], list[int]]


def load(data: Path, split: str) -> list[tuple[str, str]]:
    """Pairs (English, French): 40,000 train, 2,000 dev, 2,001 test."""
    text = read(data, "translation_en_fr", f"{split}.tsv", FILES[split])
    return [tuple(line.split("\t")) for line in text.splitlines()]  # type: ignore[misc]


def build(data: Path) -> Translate:
    pairs = load(data, "train")
    return Translate(source_pieces([s for s, _ in pairs], 3000), target_pieces([t for _, t in pairs], 3500))


def encode(network: Translate, pairs: list[tuple[str, str]]) -> list[Pair]:
    """Ids of the source with its end, and of the target between begin and end."""
    sources = network.source.encode_batch([s for s, _ in pairs])
    targets = network.target.encode_batch([t for _, t in pairs])
    return [([*s.ids, END], [BEGIN, *t.ids, END]) for s, t in zip(sources, targets, strict=True)]


def batches(pairs: list[Pair], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Sources of equal length [batch, time], and their targets filled up with -1 [batch, time']."""
    order = torch.randperm(len(pairs)).tolist()
    order.sort(key=lambda i: (len(pairs[i][0]), len(pairs[i][1])))
    chosen: list[list[int]] = []
    for i in order:
        if chosen and len(chosen[-1]) < size and len(pairs[chosen[-1][0]][0]) == len(pairs[i][0]):
            chosen[-1].append(i)
        else:
            chosen.append([i])
    for k in torch.randperm(len(chosen)).tolist():
        longest = max(len(pairs[i][1]) for i in chosen[k])
        yield (
            torch.tensor([pairs[i][0] for i in chosen[k]]),
            torch.tensor([pairs[i][1] + [-1] * (longest - len(pairs[i][1])) for i in chosen[k]]),
        )


def loss_of(network: Translate, source: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of the next target piece."""
    state = network.prime(source, torch.zeros(len(source), network.state_size))
    logits, _ = network(target[:, :-1].clamp(min=0), state)
    return cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=-1, label_smoothing=smoothing)


NUM_EPOCHS, BATCH, HIGHEST_RATE = 16, 64, 3e-3


def train(network: Translate, data: Path, trainer: Trainer) -> None:
    """Label-smoothed cross entropy, products in bfloat16; the rate rises for a tenth of the way, then falls."""
    fit(network, encode(network, load(data, "train")), encode(network, load(data, "dev")), trainer, NUM_EPOCHS)


def fit(
    network: Translate,
    learn: list[Pair],
    valid: list[Pair],
    trainer: Trainer,
    num_epochs: int,
    watch: Callable[[float], None] = lambda loss: None,
) -> list[float]:
    """Trains for so many epochs (or the trainer's limit); validation losses by epoch, not smoothed. watch: called with
    each, before the next epoch."""
    num_epochs = min(num_epochs, trainer.max_epochs or num_epochs)
    total, done = num_epochs * sum(1 for _ in batches(learn, BATCH)), 0

    def epoch() -> float:
        nonlocal done
        losses = []
        for source, target in batches(learn, BATCH):
            along = done / total
            rate = along / 0.1 if along < 0.1 else 0.5 * (1 + math.cos(math.pi * (along - 0.1) / 0.9))
            for group in trainer.optimizer.param_groups:
                group["lr"] = HIGHEST_RATE * max(rate, 1e-3)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(network, source, target, 0.1)
            losses.append(trainer.step(loss))
            done += 1
        return sum(losses) / len(losses)

    def validate() -> float:
        sums = [(float(loss_of(network, s, t)) * int((t[:, 1:] >= 0).sum()), t) for s, t in batches(valid, 256)]
        loss = sum(loss for loss, _ in sums) / sum(int((t[:, 1:] >= 0).sum()) for _, t in sums)
        watch(loss)
        return loss

    return trainer.fit(epoch, validate, num_epochs=num_epochs, patience=num_epochs)


# The same network, data and seed with every context zero, after 15 epochs (`cellar-models ablate translate` trains it):
# test, greedy.
WITHOUT_ATTENTION = {"BLEU": 12.4938, "chrF": 30.6169}


def evaluate(network: Translate, data: Path) -> Result:
    """BLEU and chrF on test, greedy and by beams, beside the same without attention and the nearest training pair."""
    pairs = load(data, "test")
    references = [t for _, t in pairs]
    sources = [s for s, _ in encode(network, pairs)]
    found = [network.target.decode(ids) for ids in greedy(network, sources)]
    ours = scores(found, references)
    # a search takes far longer: of some
    some = slice(None, None, 20)
    searched = scores([network.target.decode(beam(network, ids)) for ids in sources[some]], references[some])
    beside = scores(found[some], references[some])
    copied = scores(nearest(load(data, "train"), [s for s, _ in pairs]), references)
    return Result(
        metrics={f"{name}, greedy": value for name, value in ours.items()},
        baselines={
            **{f"the same without attention, {name}": value for name, value in WITHOUT_ATTENTION.items()},
            **{f"French of the nearest training sentence, {name}": value for name, value in copied.items()},
        },
        unit=f"{len(pairs)} test pairs, one reference each, sacrebleu, 0 to 100",
        is_better=ours["BLEU"] > max(WITHOUT_ATTENTION["BLEU"], copied["BLEU"]),
        notes=(
            "BLEU is sacrebleu's, of cased text with its own tokens (13a). Many of the sentences have several good "
            "translations (tu or vous, masculine or feminine), of which one is the reference."
        ),
        more={
            "pairs that were searched too": float(len(references[some])),
            **{f"{name} of these, 4 beams": value for name, value in searched.items()},
            **{f"{name} of these, greedy": value for name, value in beside.items()},
        },
    )


def write_samples(folder: Path, data: Path) -> None:
    """200 test pairs, of as many English sentences."""
    pairs = list({english: (english, french) for english, french in load(data, "test")}.values())
    (folder / "sentences.tsv").write_text("\n".join("\t".join(pair) for pair in pairs[::9][:200]) + "\n")


def ablate(data: Path, max_epochs: int | None) -> str:
    """Trains the network without attention: its scores on test, greedy."""
    network = build(data)
    network.attends = False
    train(network, data, Trainer(network, max_epochs=max_epochs))
    pairs = load(data, "test")
    found = greedy(network, [s for s, _ in encode(network, pairs)])
    made = scores([network.target.decode(ids) for ids in found], [t for _, t in pairs])
    return "without attention: " + ", ".join(f"{name} {value:.4f}" for name, value in made.items())
