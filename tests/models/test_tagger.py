"""The taggers: what a word is spelt as, what the data holds, and the committed artefacts as a caller uses them."""

from __future__ import annotations

import os
from pathlib import Path

import cellar_client
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import tagger  # noqa: E402
from cellar_models.export import export  # noqa: E402
from cellar_proto.v1.reason_pb2 import Reason  # noqa: E402
from cellar_server.codecs.text import TextCodec  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

ZOO = Path(__file__).parents[2] / "models" / "zoo"
DATA = Path(os.environ.get("CELLAR_DATA", "data"))
pytestmark = pytest.mark.filterwarnings(
    # TorchScript works and is said to be on its way out; it is part of what an artefact promises
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:.*torch.jit.*:FutureWarning",
)


@pytest.mark.parametrize("is_whole_only", [False, True])
def test_an_untrained_network_exports_and_verifies(is_whole_only: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = export(tagger.Tagger(["[UNK]", "the", "cat"], is_whole_only, 4, 3, 5, 6), tmp_path)
    assert folder.parent.name == ("tagger-whole" if is_whole_only else "tagger")


@pytest.fixture(scope="module")
def speller() -> TextCodec:
    file = ZOO / "tagger" / "1" / "tokenizer.json"
    return TextCodec(file, head_bytes=tagger.HEAD_BYTES, tail_bytes=tagger.TAIL_BYTES)


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
        lambda w: len(w.split()) == 1
    )
)
def test_the_server_spells_as_the_training_did(speller: TextCodec, word: str) -> None:
    word = word.split()[0]
    ids, rest = speller.take(b"", word.encode(), True)
    assert rest == b""
    assert ids[:, 1:].tolist() == [tagger.spell(word)]


def test_a_tokenizer_of_pieces_cannot_spell(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({"a": 0, "1": 1, ",": 2, "5": 3}, [])).save(str(tmp_path / "pieces.json"))
    with pytest.raises(ValueError, match="one id for every word"):
        TextCodec(tmp_path / "pieces.json", head_bytes=1)


@pytest.mark.skipif(not (DATA / "tagging_ud_ewt").is_dir(), reason="CELLAR_DATA holds no tagging_ud_ewt")
def test_the_data_is_the_treebank() -> None:
    sentences = {split: tagger.load(DATA, split) for split in tagger.FILES}
    assert {k: (len(v), sum(map(len, v))) for k, v in sentences.items()} == {
        "train": (12544, 204577),
        "dev": (2001, 25147),
        "test": (2077, 25094),
    }
    assert {tag for sentence in sentences["train"] for _, tag in sentence} == set(tagger.TAGS)


def _samples(name: str) -> list[tuple[str, list[str]]]:
    folder = ZOO / name / "1" / "samples"
    texts, tags = ((folder / f"{each}.txt").read_text().splitlines() for each in ("sentences", "tags"))
    return [(text, line.split()) for text, line in zip(texts, tags, strict=True)]


@pytest.mark.parametrize(("name", "least"), [("tagger", 0.9), ("tagger-whole", 0.92)])
def test_the_committed_tagger_tags_sentences(client: cellar_client.Client, name: str, least: float) -> None:
    samples = _samples(name)
    answers = [client.predict(name, text) for text, _ in samples]
    found = [[tagger.TAGS[i] for i in np.asarray(answer).argmax(-1)] for answer in answers]
    right = [a == b for tags, (_, truth) in zip(found, samples, strict=True) for a, b in zip(tags, truth, strict=True)]
    assert np.mean(right) > least


def test_words_are_tagged_as_they_arrive(client: cellar_client.Client) -> None:
    text, _ = _samples("tagger")[0]
    whole = np.asarray(client.predict("tagger", text))
    with client.session("tagger") as session:
        pieces = [np.asarray(session.step(text[at : at + 5])) for at in range(0, len(text), 5)]
        pieces.append(np.asarray(session.step(" ")))
    np.testing.assert_allclose(np.concatenate([p for p in pieces if len(p)]), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["tagger", "tagger-whole"])
def test_sentences_of_mixed_length_are_tagged_as_each_alone(client: cellar_client.Client, name: str) -> None:
    texts = [text for text, _ in _samples(name)]
    assert len({len(text.split()) for text in texts}) > 3
    for together, text in zip(client.predict_many(name, texts), texts, strict=True):
        np.testing.assert_allclose(np.asarray(together), np.asarray(client.predict(name, text)), rtol=0, atol=1e-5)


def test_only_the_whole_sequence_tagger_sees_what_follows(client: cellar_client.Client) -> None:
    def first(name: str, text: str) -> np.ndarray:
        return np.asarray(client.predict(name, text))[0]

    assert np.abs(first("tagger", "Google it") - first("tagger", "Google Inc.")).max() < 1e-6
    assert np.abs(first("tagger-whole", "Google it") - first("tagger-whole", "Google Inc.")).max() > 1e-3


def test_a_whole_sequence_tagger_has_no_sessions(client: cellar_client.Client) -> None:
    with pytest.raises(cellar_client.CellarError) as caught, client.session("tagger-whole") as session:
        session.step("a word")
    assert caught.value.reason == Reason.UNSUPPORTED
