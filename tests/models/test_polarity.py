"""The evidence of words and pairs, counted apart from a text's own part; the two data sets; the Russian cut."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import polarity, sentiment, sentiment_ru  # noqa: E402
from cellar_models.export import export  # noqa: E402
from cellar_models.polarity import Text  # noqa: E402
from cellar_models.training import Trainer  # noqa: E402

DATA = Path(os.environ.get("CELLAR_DATA", "data"))
_RUSSIAN = pytest.mark.skipif(
    not (DATA / "sentiment_ru_goemotions").is_dir(), reason="CELLAR_DATA holds no sentiment_ru_goemotions"
)
_ENGLISH = pytest.mark.skipif(not (DATA / "sentiment_rt").is_dir(), reason="CELLAR_DATA holds no sentiment_rt")
TEXTS = [Text(["good", "film"], 1), Text(["good", "film"], 1), Text(["bad", "film"], 0), Text(["bad", "film"], 0)] * 8
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def make(words: list[str]) -> sentiment.Sentiment:
    return sentiment.Sentiment(words, 4, 6, num_buckets=64)


def test_evidence_is_the_log_of_the_shares() -> None:
    network = polarity.build(TEXTS, make)
    assert network.words == ["[UNK]", "film", "bad", "good"]
    good, bad, film = (float(network.odds[network.place[word], 0]) for word in ("good", "bad", "film"))
    assert good == pytest.approx(np.log(17.0))
    assert bad == pytest.approx(-good)
    assert film == pytest.approx(0.0)
    x = torch.tensor([[network.place["good"], network.place["film"], network.place["good"]]])
    found = network.evidence(x, torch.zeros(1, 1, dtype=torch.int64))[0, :, 1]
    assert found.tolist() == pytest.approx([0.0, np.log(17.0), 0.0])  # only "good film" is a known pair


def test_the_pair_across_a_cut_counts() -> None:
    network = polarity.build(TEXTS, make).eval()
    x = torch.tensor([network.ids(["good", "film", "bad", "film"])])
    state = torch.zeros(1, network.state_size)
    with torch.no_grad():
        whole, last = network(x, state)
        first, middle = network(x[:, :1], state)
        rest, cut = network(x[:, 1:], middle)
    assert torch.allclose(whole, torch.cat([first, rest], dim=1), atol=1e-6)
    assert torch.allclose(last, cut, atol=1e-6)
    assert float(last[0, -2]) == network.place["film"]


def test_training_learns_what_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = polarity.build(TEXTS, make)
    polarity.train(network, TEXTS, TEXTS[:4], Trainer(network, is_quiet=True, max_epochs=2))
    assert polarity.scores(network, TEXTS) == (1.0, 1.0)
    assert polarity.naive_bayes(TEXTS, TEXTS) == (1.0, 1.0)
    export(network, tmp_path)
    assert (tmp_path / "sentiment" / "1" / "tokenizer.json").is_file()


def test_measures_of_counts() -> None:
    accuracy, f1 = polarity.measures(np.array([[3, 1], [2, 4]]))
    assert accuracy == pytest.approx(0.7)
    assert f1 == pytest.approx((6 / 9 + 8 / 11) / 2)


def test_russian_words_are_cut_to_five_letters(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    assert sentiment_ru.split("Это НЕ ёлки, действительно!") == ["это", "не", "елки", ",", "дейст", "!"]
    network = sentiment_ru.SentimentRu(["[UNK]", "не", "дейст"], 4, 6, num_buckets=8)
    export(network, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "sentiment-ru" / "1" / "tokenizer.json"))
    assert tokenizer.encode("НЕ действовал", add_special_tokens=False).ids == [1, 2]


@_RUSSIAN
def test_the_russian_data() -> None:
    learn, test = sentiment_ru.load(DATA, "validation"), sentiment_ru.load(DATA, "test")
    assert [sum(text.label == label for text in learn) for label in (1, 0)] == [2096, 1118]
    assert [sum(text.label == label for text in test) for label in (1, 0)] == [2026, 1184]
    # the figures that are stated with the data
    accuracy, f1 = polarity.naive_bayes(learn, test, 1, with_prior=True)
    assert accuracy == pytest.approx(0.773, abs=1e-3)
    assert f1 == pytest.approx(0.741, abs=1e-3)


@_ENGLISH
def test_the_english_folds() -> None:
    folds = sentiment.load(DATA)
    assert [len(fold) for fold in folds] == [1068] + [1066] * 9
    assert sum(text.label for fold in folds for text in fold) == 5331
