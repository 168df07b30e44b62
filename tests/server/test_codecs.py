"""Text, dialogue acts and vocabularies."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from cellar_proto.v1 import manifest_pb2
from cellar_server.codecs.dialogue_act import DialogueActCodec
from cellar_server.codecs.name import NameCodec
from cellar_server.codecs.pcm import PcmCodec
from cellar_server.codecs.text import TextCodec
from cellar_server.codecs.vocabulary import Vocabulary
from cellar_server.errors import CellarError
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

from tests.fakes.bench import reason_of


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    words = ["[UNK]", "a", "good", "film", "héllo", "мир", "日本"]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    file = tmp_path_factory.mktemp("codec") / "tokenizer.json"
    tokenizer.save(str(file))
    return TextCodec(file, max_word_bytes=16)


def test_the_last_word_is_held_back(codec: TextCodec) -> None:
    ids, tail = codec.take(b"", b"A good fi", False)
    assert (ids.tolist(), tail) == ([1, 2], b"fi")
    ids, tail = codec.take(tail, b"lm", False)
    assert (ids.tolist(), tail) == ([], b"film")
    ids, tail = codec.take(tail, b"", True)
    assert (ids.tolist(), tail) == ([3], b"")


words = st.lists(
    st.sampled_from(["a", "good", "film", "héllo", "мир", "日本", " ", "\u2003", "\n", "x" * 40, "é" * 20]), max_size=12
)


@given(words.map(" ".join), st.lists(st.integers(0, 200), max_size=8))
def test_ids_do_not_depend_on_the_cut(codec: TextCodec, text: str, cuts: list[int]) -> None:
    data = text.encode()
    whole, rest = codec.take(b"", data, True)
    assert rest == b""
    places = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    found, tail = [], b""
    for low, high in pairwise(places):
        ids, tail = codec.take(tail, data[low:high], False)
        assert len(tail) <= 16 + 3
        found += ids.tolist()
    ids, tail = codec.take(tail, b"", True)
    assert found + ids.tolist() == whole.tolist()


@pytest.fixture(scope="module")
def by_character(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    characters = ["[UNK]", "a", " ", "\n", "é", "日", "\u0301"]
    tokenizer = Tokenizer(WordLevel({c: i for i, c in enumerate(characters)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    file = tmp_path_factory.mktemp("characters") / "tokenizer.json"
    tokenizer.save(str(file))
    return TextCodec(file, is_by_character=True)


@given(st.text(st.sampled_from("a \n\r\té日\u0301x🙂"), max_size=20), st.lists(st.integers(0, 80), max_size=8))
def test_by_character_nothing_but_half_a_character_is_held_back(
    by_character: TextCodec, text: str, cuts: list[int]
) -> None:
    known = {"a": 1, " ": 2, "\n": 3, "é": 4, "日": 5, "\u0301": 6}
    data = text.encode()
    places = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    found, tail = [], b""
    for low, high in pairwise(places):
        ids, tail = by_character.take(tail, data[low:high], False)
        found += ids.tolist()
        assert len(found) == len(data[:high].decode(errors="ignore"))
        assert len(tail) < 4
    assert found == [known.get(c, 0) for c in text]
    assert by_character.take(tail, b"", True)[0].tolist() == []


def test_a_tokenizer_of_words_is_none_of_characters(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "words.json"))
    with pytest.raises(ValueError, match="one id for every character"):
        TextCodec(tmp_path / "words.json", is_by_character=True)


@pytest.fixture(scope="module")
def spelling(codec: TextCodec, tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    file = tmp_path_factory.mktemp("spelling") / "tokenizer.json"
    codec.tokenizer.save(str(file))
    return TextCodec(file, max_word_bytes=16, head_bytes=2, tail_bytes=3)


def test_a_word_is_its_id_and_the_bytes_it_begins_and_ends_with(spelling: TextCodec) -> None:
    ids, rest = spelling.take(b"", "Good a é".encode(), True)
    # 1 + the byte as the caller wrote it; 0 behind the first ones and before the last ones
    assert ids.tolist() == [
        [2, 1 + ord("G"), 1 + ord("o"), 1 + ord("o"), 1 + ord("o"), 1 + ord("d")],
        [1, 1 + ord("a"), 0, 0, 0, 1 + ord("a")],
        [0, 1 + 0xC3, 1 + 0xA9, 0, 1 + 0xC3, 1 + 0xA9],
    ]
    assert (ids.dtype, rest) == (np.int64, b"")
    ids, rest = spelling.take(b"", b"goo", False)
    assert (ids.shape, rest) == ((0, 6), b"goo")


@given(words.map(" ".join), st.lists(st.integers(0, 200), max_size=8))
def test_the_spelling_does_not_depend_on_the_cut(spelling: TextCodec, text: str, cuts: list[int]) -> None:
    data = text.encode()
    whole, _ = spelling.take(b"", data, True)
    found, tail = [], b""
    for low, high in pairwise(sorted({0, len(data), *(c for c in cuts if c < len(data))})):
        ids, tail = spelling.take(tail, data[low:high], False)
        found += ids.tolist()
    ids, tail = spelling.take(tail, b"", True)
    assert found + ids.tolist() == whole.tolist()
    assert tail == b""


def test_characters_are_not_spelt(tmp_path: Path, by_character: TextCodec) -> None:
    by_character.tokenizer.save(str(tmp_path / "characters.json"))
    with pytest.raises(ValueError, match="one id for every word"):
        TextCodec(tmp_path / "characters.json", is_by_character=True, tail_bytes=1)


@pytest.mark.parametrize(("data", "end"), [(b"a \xff b", False), (b"a \xc3", True), (b"\xc3(", False)])
def test_bytes_that_are_no_text(codec: TextCodec, data: bytes, end: bool) -> None:
    with pytest.raises(CellarError) as caught:
        codec.take(b"", data, end)
    assert reason_of(caught.value) == "INVALID_TEXT"


@pytest.fixture
def acts() -> DialogueActCodec:
    spec = manifest_pb2.DialogueActCodec(
        features=[
            *("act=inform", "slot=name", "slot=name#2", "slot=food"),
            *("slot=kids:yes", "slot=food:dontcare", "slot=kids#2:no"),
        ],
        copied_slots=["name", "food"],
        closed_slots=["kids"],
    )
    return DialogueActCodec(spec)


def test_an_act_becomes_features_and_values(acts: DialogueActCodec) -> None:
    vector, values = acts.read(b"inform(name='Joe's; bar';name=B;kids=yes)")
    assert vector.tolist() == [1, 1, 1, 0, 1, 0, 0]
    assert values == {"<name>": "Joe's; bar", "<name#2>": "B"}
    for spelt in (b"dontcare", b"dont_care", b"'DontCare'"):
        assert acts.read(b"inform(food=" + spelt + b")")[0].tolist() == [1, 0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("text", [b"inform(kids=yes;kids=no)", b"inform(kids=true;name=A;kids='false')"])
def test_the_second_of_a_slot_is_another_feature(acts: DialogueActCodec, text: bytes) -> None:
    vector, _ = acts.read(text)
    assert vector[[4, 6]].tolist() == [1, 1]
    with pytest.raises(CellarError, match="kids#2 = yes"):
        acts.read(b"inform(kids=no;kids=yes)".replace(b"kids=no", b"kids=yes"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"hello", "reads act"),
        (b"sing()", "'sing' is not among inform"),
        (b"inform(colour=red)", "'colour' is not among food, kids, name"),
        (b"inform(kids=never)", "kids = never"),
        (b"inform(=)", "cannot read"),
    ],
)
def test_acts_that_cannot_be_read(acts: DialogueActCodec, text: bytes, message: str) -> None:
    with pytest.raises(CellarError, match=message) as caught:
        acts.read(text)
    assert reason_of(caught.value) == "INVALID_CONDITION"


def test_pieces_of_text_join_to_the_whole(tmp_path: Path) -> None:
    file = tmp_path / "v.json"
    file.write_text(json.dumps(["<begin>", "<end>", "<name>", "is", "nice"]))
    vocabulary = Vocabulary(file, " ")
    values = {"<name>": "Зоя"}
    pieces = [vocabulary.text([id], values, i == 0) for i, id in enumerate([2, 3, 4])]
    assert b"".join(pieces) == vocabulary.text([2, 3, 4], values, True) == "Зоя is nice".encode()


@given(st.integers(1, 7), st.binary(max_size=120), st.lists(st.integers(0, 60), max_size=8))
def test_frames_do_not_depend_on_the_cut(frame_samples: int, data: bytes, cuts: list[int]) -> None:
    data = data[: len(data) // 2 * 2]
    codec = PcmCodec(frame_samples)
    whole, rest = codec.take(b"", data, True)
    assert rest == b""
    assert whole.tobytes() == data[: whole.nbytes]
    assert len(data) - whole.nbytes < 2 * frame_samples
    places = sorted({0, len(data), *(2 * cut for cut in cuts if 2 * cut < len(data))})
    found, tail = [np.zeros((0, frame_samples), np.int16)], b""
    for low, high in pairwise(places):
        frames, tail = codec.take(tail, data[low:high], False)
        assert len(tail) < 2 * frame_samples
        found.append(frames)
    found.append(codec.take(tail, b"", True)[0])
    assert np.array_equal(np.concatenate(found), whole)


def test_a_name_is_a_one_at_its_place() -> None:
    codec = NameCodec(manifest_pb2.NameCodec(names=["reel", "jig", "grüße"]))
    assert codec.read(b"jig")[0].tolist() == [0, 1, 0]
    vector, values = codec.read(" grüße\n".encode())
    assert (vector.tolist(), vector.dtype, values) == ([0, 0, 1], np.float32, {})


@pytest.mark.parametrize(
    ("text", "reason"), [(b"tango", "INVALID_CONDITION"), (b"JIG", "INVALID_CONDITION"), (b"\xff", "INVALID_TEXT")]
)
def test_a_name_that_the_model_lacks_is_refused(text: bytes, reason: str) -> None:
    codec = NameCodec(manifest_pb2.NameCodec(names=["reel", "jig"]))
    with pytest.raises(CellarError) as caught:
        codec.read(text)
    assert reason_of(caught.value) == reason


def test_names_that_stand_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        NameCodec(manifest_pb2.NameCodec(names=["reel", "reel"]))
