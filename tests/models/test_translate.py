"""translate: its pieces, its memory in the state row, its decoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import decoding, multi30k, translate  # noqa: E402
from cellar_models.pieces import BEGIN, END, SPECIAL, UNKNOWN, source_pieces, target_pieces  # noqa: E402
from cellar_models.training import Trainer  # noqa: E402
from cellar_models.translate import Translate, batches, encode, loss_of  # noqa: E402

DATA = Path(os.environ.get("CELLAR_DATA", "data"))
has_data = pytest.mark.skipif(
    not (DATA / "translation_en_fr").is_dir(), reason="CELLAR_DATA holds no translation_en_fr"
)
PAIRS = [
    ("They went home.", "Ils sont rentrés."),
    ("I'm home.", "Je suis là !"),
    ("Who's there?", "Qui est là ?"),
    ("They went out.", "Elles sont sorties."),
]


@pytest.fixture
def network() -> Iterator[Translate]:
    """A small one; on one thread, as products this small are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = Translate(
        source_pieces([s for s, _ in PAIRS] * 2, 60),
        target_pieces([t for _, t in PAIRS] * 2, 60),
        embedding_size=6,
        hidden_size=8,
        max_source=10,
        dropout=0.0,
    )
    yield made.eval()
    torch.set_num_threads(threads)


def test_pieces_give_the_text_back(network: Translate) -> None:
    for _, text in PAIRS:
        ids = network.target.encode(text).ids
        assert network.target.decode(ids) == text
        assert "".join(network.target.id_to_token(i) for i in ids).replace("\u2581", " ") == text
    assert [network.target.id_to_token(i) for i in (UNKNOWN, BEGIN, END)] == SPECIAL
    assert UNKNOWN in network.source.encode("\u4f60").ids


def test_the_server_reads_a_sentence_as_training_did(network: Translate, tmp_path: Path) -> None:
    from cellar_server.codecs.text import TextCodec

    network.source.save(str(tmp_path / "tokenizer.json"))
    codec = TextCodec(tmp_path / "tokenizer.json")
    for text, _ in PAIRS:
        for typed in (text, f"  {text.replace(' ', '  ')}\n", text.upper()):
            assert codec.take(b"", typed.encode(), True)[0].tolist() == network.source.encode(text).ids


def test_a_source_is_remembered_slot_by_slot_however_it_is_cut(network: Translate) -> None:
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, network.source.get_vocab_size(), (3, 7)))
    start = torch.zeros(3, network.state_size)
    with torch.no_grad():
        whole = network.prime(ids, start)
        for at in range(1, 7):
            state = network.prime(ids[:, at:], network.prime(ids[:, :at], start))
            assert torch.allclose(state, whole, atol=1e-6)
        y, _ = network.encoder(network.source_embedding(ids), start[:, :8])
    memory = whole[:, 17:].unflatten(1, (10, 8))
    assert (whole[:, 16] == 7).all()
    assert torch.allclose(memory[:, :7], y, atol=1e-6)
    assert (memory[:, 7:] == 0).all()
    expected = network.prime_equations(ids.numpy(), start.numpy().astype(np.float64))
    assert np.abs(whole.numpy() - expected).max() < 1e-6


def test_what_comes_after_the_last_slot_is_not_remembered(network: Translate) -> None:
    ids = torch.randint(0, network.source.get_vocab_size(), (2, 13))
    start = torch.zeros(2, network.state_size)
    with torch.no_grad():
        ten, more = network.prime(ids[:, :10], start), network.prime(ids, start)
    assert torch.allclose(ten[:, 17:], more[:, 17:], atol=1e-6)
    assert (more[:, 16] == 13).all()
    expected = network.prime_equations(ids.numpy(), start.numpy().astype(np.float64))
    assert np.abs(more.numpy() - expected).max() < 1e-6


def test_only_slots_that_are_filled_are_attended_to(network: Translate) -> None:
    ids = torch.randint(3, network.source.get_vocab_size(), (1, 4))
    with torch.no_grad():
        state = network.prime(ids, torch.zeros(1, network.state_size))
        other = state.clone()
        other[:, 17 + 4 * 8 :] = 5.0
        y, _ = network(torch.tensor([[BEGIN, 4]]), state)
        assert torch.equal(network(torch.tensor([[BEGIN, 4]]), other)[0], y)
        other[:, 17] += 1.0
        assert not torch.equal(network(torch.tensor([[BEGIN, 4]]), other)[0], y)
        network.attends = False
        one, two = (network(torch.tensor([[BEGIN]]), each)[0] for each in (state, other))
        assert torch.equal(one, two)


def test_sources_are_batched_by_equal_length_and_all_are_there(network: Translate) -> None:
    pairs = encode(network, PAIRS * 5)
    found = [
        (source.tolist(), [id for id in target.tolist() if id >= 0])
        for sources, targets in batches(pairs, 3)
        for source, target in zip(sources, targets, strict=True)
    ]
    assert sorted(found) == sorted(pairs)
    assert all(source[-1] == END and target[0] == BEGIN and target[-1] == END for source, target in found)


def test_it_learns_a_few_sentences_by_heart_and_beams_find_them(network: Translate) -> None:
    trainer = Trainer(network, is_quiet=True, learning_rate=3e-2)
    pairs = encode(network, PAIRS)
    network.train()
    for _ in range(60):
        for source, target in batches(pairs, 4):
            trainer.step(loss_of(network, source, target))
    network.eval()
    sources = [source for source, _ in pairs]
    assert [network.target.decode(ids) for ids in decoding.greedy(network, sources)] == [t for _, t in PAIRS]
    assert [network.target.decode(decoding.beam(network, ids)) for ids in sources] == [t for _, t in PAIRS]


def test_a_seed_alone_repeats_pieces_and_weights() -> None:
    """In another process, with another order of sets and another number of threads for the pieces."""
    script = """
import hashlib, random, torch
from cellar_models.pieces import source_pieces, target_pieces
from cellar_models.training import Trainer
from cellar_models.translate import Translate, encode, fit
draw = random.Random(1)
words = ["".join(draw.choice("abcdefgh") for _ in range(draw.randint(2, 6))) for _ in range(80)]
pairs = [tuple(" ".join(draw.choice(words) for _ in range(5)) for _ in range(2)) for _ in range(80)]
torch.set_num_threads(1)
torch.manual_seed(1)
source, target = source_pieces([s for s, _ in pairs], 200), target_pieces([t for _, t in pairs], 200)
network = Translate(source, target, embedding_size=8, hidden_size=8)
fit(network, encode(network, pairs), encode(network, pairs[:9]), Trainer(network, is_quiet=True), 1)
weights = b"".join(each.detach().numpy().tobytes() for each in network.parameters())
print(hashlib.sha256(source.to_str().encode() + target.to_str().encode() + weights).hexdigest())
"""
    found = set()
    for seed, threads in (("1", "1"), ("2", "3")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        found.add(
            subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True).stdout
        )
    assert len(found) == 1


@has_data
def test_the_shipped_pieces_are_those_that_the_data_give() -> None:
    network = translate.build(DATA)
    folder = Path(__file__).parents[2] / "models" / "zoo" / "translate" / "1"
    assert json.loads(network.source.to_str()) == json.loads((folder / "tokenizer.json").read_text("utf-8"))
    pieces = [network.target.id_to_token(i).replace("\u2581", " ") for i in range(network.target.get_vocab_size())]
    assert pieces == json.loads((folder / "vocabulary.json").read_text("utf-8"))


def test_training_follows_its_schedule(network: Translate) -> None:
    trainer, seen = Trainer(network, is_quiet=True, max_epochs=2), []
    losses = translate.fit(network, encode(network, PAIRS), encode(network, PAIRS), trainer, 9, seen.append)
    assert losses == seen
    assert len(losses) == 2
    assert 0 < trainer.optimizer.param_groups[0]["lr"] < translate.HIGHEST_RATE


def test_the_nearest_sentence_shares_the_rarest_words() -> None:
    found = decoding.nearest(PAIRS, ["they were home", "Who went?", "nothing shared here"])
    assert found[:2] == ["Ils sont rentrés.", "Qui est là ?"]


def test_scores_of_the_references_themselves_are_full() -> None:
    assert decoding.scores(["Elle est là ."], ["Elle est là ."]) == pytest.approx({"BLEU": 100.0, "chrF": 100.0})


@has_data
def test_every_pair_of_the_data_is_read() -> None:
    assert [len(translate.load(DATA, split)) for split in ("train", "dev", "test")] == [40_000, 2_000, 2_001]
    network = translate.build(DATA)
    for split in ("dev", "test"):
        pairs = encode(network, translate.load(DATA, split))
        assert max(len(source) for source, _ in pairs) <= network.max_source


@pytest.mark.skipif(not (DATA / "translation_multi30k").is_dir(), reason="CELLAR_DATA holds no translation_multi30k")
def test_multi30k_is_read_in_lower_case() -> None:
    counts = [len(multi30k.load(DATA, split)) for split in ("train", "val", "test_2016_flickr")]
    assert counts == [29_000, 1_014, 1_000]
    assert multi30k.load(DATA, "test_2016_flickr")[0][0] == "ein mann mit einem orangefarbenen hut, der etwas anstarrt."


def test_the_command_for_multi30k_tells_its_learning_curve(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(multi30k, "load", lambda data, split: [(t, s) for s, t in PAIRS])
    monkeypatch.setattr(multi30k, "HIDDEN_SIZE", 16)
    findings = tmp_path / "docs" / "multi30k.json"
    assert multi30k.main(["--epochs", "2", "--runs", str(tmp_path), "--findings", str(findings)]) == 0
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert [line[:4] for line in out.splitlines() if line[:3] in ("| 1", "| 2")] == ["| 1 ", "| 2 "]
    assert "4 beams: BLEU" in out
    assert (tmp_path / "multi30k.pt").is_file()
    found = json.loads(findings.read_text())
    assert [epoch for epoch, *_ in found["curve"]] == [1, 2]
    assert found["test"].keys() == {"1", "4"}
