"""How good sentences for dialogue acts are: BLEU as the benchmark counts it, slot errors, and sentences to beat."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from cellar_models.describe_data import Example, delexicalise, filled, lexicalise, pattern

Words = tuple[str, ...]
Pattern = tuple[str | tuple[str, str], ...]


@dataclass(frozen=True)
class Item:
    """One test sentence's act, the values of its placeholders, and what people said for acts of its pattern, with
    placeholders, each sentence once."""

    act: str
    pattern: Pattern
    values: dict[str, str]
    references: tuple[Words, ...]


def grouped(examples: list[Example]) -> dict[Pattern, list[Words]]:
    """The sentences of each pattern of acts, with placeholders."""
    groups: dict[Pattern, list[Words]] = {}
    for example in examples:
        words = tuple(delexicalise(example.sentence, filled(example.act)))
        groups.setdefault(pattern(example.act), []).append(words)
    return groups


def items(examples: list[Example]) -> list[Item]:
    """An item for each example of one domain, in their order: a sentence that occurs often counts as often."""
    groups = {key: tuple(dict.fromkeys(sentences)) for key, sentences in grouped(examples).items()}
    return [Item(e.act, pattern(e.act), filled(e.act), groups[pattern(e.act)]) for e in examples]


def own_items(those: list[Item], examples: list[Example]) -> list[Item]:
    """The same items with the sentences of the very same act, values and all, for references: the strictest way."""
    groups: dict[str, list[Words]] = {}
    for item, example in zip(those, examples, strict=True):
        groups.setdefault(item.act, []).append(tuple(delexicalise(example.sentence, item.values)))
    return [replace(item, references=tuple(dict.fromkeys(groups[item.act]))) for item in those]


def bleu(hypotheses: list[str], references: list[tuple[str, ...]]) -> float:
    """Corpus BLEU-4 of sentences whose words are parted by blanks, with several references each; 0 to 1."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(smooth_method="none", tokenize="none", force=True)
    pairs = Counter(zip(hypotheses, references, strict=True))
    correct, total, lengths = np.zeros(4, int), np.zeros(4, int), np.zeros(2, int)
    # what is the same is counted once, by how often it is there
    for times in set(pairs.values()):
        same = [pair for pair, n in pairs.items() if n == times]
        # sacrebleu takes None for a reference that a sentence has not
        streams = list(itertools.zip_longest(*(several for _, several in same)))
        found = metric.corpus_score([text for text, _ in same], streams)
        correct += times * np.array(found.counts)
        total += times * np.array(found.totals)
        lengths += times * np.array([found.sys_len, found.ref_len])
    return BLEU.compute_bleu(correct.tolist(), total.tolist(), *lengths.tolist()).score / 100


def filled_bleu(those: list[Item], said: Callable[[Item], list[Words]]) -> float:
    """As the benchmark's program counts: every item, each of the sentences `said` of it, the values filled in on both
    sides, against all references of the item's pattern."""
    hypotheses, references = [], []
    for item in those:
        values = {placeholder: value.lower() for placeholder, value in item.values.items()}
        several = tuple(lexicalise(list(words), values) for words in item.references)
        for words in said(item):
            hypotheses.append(lexicalise(list(words), values))
            references.append(several)
    return bleu(hypotheses, references)


def bare_bleu(those: list[Item], said: Callable[[Item], list[Words]]) -> float:
    """The same with the placeholders left in, so that values of several words earn nothing (record 8)."""
    pairs = [(" ".join(words), item) for item in those for words in said(item)]
    return bleu([text for text, _ in pairs], [tuple(" ".join(words) for words in i.references) for _, i in pairs])


def once_bleu(those: list[Item], said: Callable[[Item], list[Words]]) -> float:
    """As `bare_bleu`, each pattern once, however many test sentences it has."""
    return bare_bleu(list({item.pattern: item for item in those}.values()), said)


def slot_errors(words: Words, values: dict[str, str]) -> int:
    """Placeholders that are missing, said twice, or not asked for."""
    said = Counter(word for word in words if re.fullmatch(r"<[\w#]+>", word) and word != "<unk>")
    return sum(abs(said[each] - 1) for each in values) + sum(n for each, n in said.items() if each not in values)


def slot_error(those: list[Item], said: Callable[[Item], list[Words]]) -> float:
    """Slot errors of all sentences for all slots that are filled in their acts."""
    pairs = [(words, item.values) for item in those for words in said(item)]
    return sum(slot_errors(*pair) for pair in pairs) / sum(len(values) for _, values in pairs)


def nearest(groups: dict[Pattern, list[Words]], key: Pattern) -> list[Words]:
    """The sentences of the pattern that shares the most with this one, by the cosine, as the benchmark's nearest
    neighbour does it."""

    def likeness(other: Pattern) -> float:
        return len(set(key) & set(other)) / math.sqrt(len(key) * len(other))

    return groups[key] if key in groups else groups[max(groups, key=likeness)]


def most_typical(sentences: list[Words]) -> Words:
    """The sentence with the highest BLEU against the others."""
    if len(sentences) < 3:
        return sentences[0]
    counts = Counter(sentences)

    def likeness(words: Words) -> float:
        others = tuple(" ".join(other) for other, n in counts.items() if other != words or n > 1)
        return bleu([" ".join(words)], [others])

    return max(counts, key=likeness)
