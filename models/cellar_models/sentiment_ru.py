"""sentiment-ru, many-to-one: a Russian comment in, a running answer after every word."""

from __future__ import annotations

import csv
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

from cellar_proto.v1.manifest_pb2 import Manifest

from cellar_models import polarity
from cellar_models.data import read
from cellar_models.polarity import Polarity, Text
from cellar_models.training import Result, Trainer

FILES = {
    "sentiment_ru_goemotions": (
        "goemotions_ru.tsv",
        "58c7d90cd6b2ab0ee85dffdc70b674a95412db644d6b4b5960120a1d09c82a91",
    ),
    "sentiment_ru_xed": ("xed_ru.tsv", "3d7d08d7c0f1dbcc99620fd1fc864f589537024a1c4cbff4c9a5939e86de6969"),
}
LABELS = ["negative", "positive"]
# Letters of a word that are kept: Russian puts much of its grammar behind them.
STEM = 5


class SentimentRu(Polarity):
    """x: int64 [batch, time] ids of words cut to 5 letters -> y: float32 [batch, time, 2], probabilities of negative
    and positive."""

    name = "sentiment-ru"

    def describe(self, manifest: Manifest, folder: Path) -> None:
        _tokenizer(tuple(self.words)).save(str(folder / "tokenizer.json"), pretty=False)
        self.fill(manifest)
        manifest.description = "Is this Russian comment positive? Text in, a running answer after every word."
        manifest.licence = "MIT (data, by its repository); Apache-2.0 (weights)"
        manifest.data = "ru-goemotions (GoEmotions, Demszky et al., ACL 2020, in machine translation by S. L., 2023)"


@cache
def _tokenizer(words: tuple[str, ...]) -> Any:
    """Words and signs of a text, in lower case, no word longer than its first five letters."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[polarity.UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("ё", "е")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.Split(Regex(rf"(?<=\p{{L}}{{{STEM}}})\p{{L}}+"), behavior="removed"),
        ]
    )
    return tokenizer


def split(text: str) -> list[str]:
    """A text's words as the tokenizer cuts them."""
    tokenizer = _tokenizer(("[UNK]",))
    cut = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    return [word for word, _ in cut]


def load(data: Path, part: str) -> list[Text]:
    """The positive and the negative texts of "validation" (2,096 and 1,118), of "test" (2,026 and 1,184) or of "xed"
    (871 and 1,094), in the order of the file."""
    dataset = "sentiment_ru_xed" if part == "xed" else "sentiment_ru_goemotions"
    rows = csv.DictReader(io.StringIO(read(data, dataset, *FILES[dataset])), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [
        Text(split(row["text"] if part == "xed" else row["text_ru"]), LABELS.index(row["polarity"]))
        for row in rows
        if row["polarity"] in LABELS and (part == "xed" or row["orig_split"] == part)
    ]


def _learn(data: Path) -> tuple[list[Text], list[Text]]:
    """The texts to learn from, and every tenth, to look at."""
    texts = load(data, "validation")
    return [t for i, t in enumerate(texts) if i % 10], [t for i, t in enumerate(texts) if i % 10 == 0]


def build(data: Path, kind: str = "gru", hidden_size: int = 32) -> SentimentRu:
    network = polarity.build(
        _learn(data)[0],
        lambda words: SentimentRu(words, hidden_size=hidden_size, num_buckets=2**15, kind=kind),
    )
    assert isinstance(network, SentimentRu)
    return network


def train(network: SentimentRu, data: Path, trainer: Trainer) -> None:
    learn, valid = _learn(data)
    polarity.train(network, learn, valid, trainer, num_epochs=6)


def evaluate(network: SentimentRu, data: Path) -> Result:
    """Accuracy and macro-F1 after the last word on the test split, beside naive Bayes on the same texts."""
    learn = load(data, "validation")
    test, films = load(data, "test"), load(data, "xed")
    accuracy, f1 = polarity.scores(network, test)
    films_accuracy, films_f1 = polarity.scores(network, films)
    bayes, bayes_f1 = polarity.naive_bayes(learn, test, 1, with_prior=True)
    paired, paired_f1 = polarity.naive_bayes(learn, test, 2, with_prior=True)
    return Result(
        metrics={"test accuracy": accuracy, "test macro-F1": f1},
        baselines={
            "naive Bayes on words of 5 letters, accuracy": bayes,
            "naive Bayes on words of 5 letters, macro-F1": bayes_f1,
            "naive Bayes with pairs of words, accuracy": paired,
            "naive Bayes with pairs of words, macro-F1": paired_f1,
            "always positive, accuracy": sum(text.label for text in test) / len(test),
        },
        unit=f"share of {len(test)} texts",
        is_better=accuracy > max(bayes, paired) and f1 > max(bayes_f1, paired_f1),
        notes=NOTES,
        more={
            "film subtitles (XED, never trained on), accuracy": films_accuracy,
            "film subtitles (XED), macro-F1": films_f1,
        },
    )


NOTES = """The network learns from nine tenths of the split named validation, the naive Bayes from all of it. The texts
are machine translations of English comments. Film subtitles (XED, labels carried over from English) are far from them:
"always negative" is right in 0.557 of those, so that little is left of it there."""


def write_samples(folder: Path, data: Path) -> None:
    """300 texts of the test split, both classes in turn."""
    dataset = "sentiment_ru_goemotions"
    rows = csv.DictReader(io.StringIO(read(data, dataset, *FILES[dataset])), delimiter="\t", quoting=csv.QUOTE_NONE)
    test = [row for row in rows if row["orig_split"] == "test"]
    pairs = zip(*([row for row in test if row["polarity"] == label] for label in LABELS), strict=False)
    chosen = [row for pair in pairs for row in pair][:300]
    lines = [json.dumps({"text": r["text_ru"], "label": r["polarity"]}, ensure_ascii=False) for r in chosen]
    (folder / "sentiment-ru.jsonl").write_text("\n".join(lines) + "\n")
