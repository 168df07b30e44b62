"""melody: what it counts, the tunes that it learns from, and how a tune is moved to another key."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import melody, melody_data, melody_draws, melody_judges, tunes  # noqa: E402
from cellar_models.export import export  # noqa: E402
from cellar_models.melody_data import Example  # noqa: E402
from cellar_models.training import Trainer  # noqa: E402
from cellar_proto.v1.manifest_pb2 import Manifest  # noqa: E402
from cellar_server.sampling.sampler import sample  # noqa: E402
from google.protobuf import json_format  # noqa: E402

DATA = Path(os.environ.get("CELLAR_DATA", "data"))
ROOT = Path(__file__).parents[2]
WORDS = [
    "<begin>",
    "<end>",
    *(melody.opening(genre) for genre in melody.GENRES),
    "M:6/8\nL:1/8\n",
    "K:D\n",
    "A",
    "d3",
    "e/",
    "(3",
    "|",
    ":|",
    '"D"',
    " ",
]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:.*torch.jit.*:FutureWarning",
)
has_data = pytest.mark.skipif(
    not (DATA / "melody_nottingham").is_dir(), reason="CELLAR_DATA holds no melody_nottingham"
)


def ids(*words: str) -> torch.Tensor:
    return torch.tensor([[WORDS.index(word) for word in words]])


def test_an_untrained_network_exports_and_verifies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = melody.Melody(WORDS, 12, 8)
    folder = export(network, tmp_path)
    manifest = json_format.Parse((folder / "manifest.json").read_text(), Manifest())
    assert sum(int(np.prod(part.shape)) for part in manifest.parts) == network.state_size == manifest.state_size
    assert 0 < manifest.parity.max_relative_error < 1e-5
    assert list(manifest.prime.name.names) == list(melody.GENRES)
    assert "GPLv3" in manifest.licence


def test_bars_and_sections_are_counted_the_same_however_cut() -> None:
    network = melody.Melody(WORDS, 6, 4).eval()
    n, k = network.lstm.state_size, network.num_headings
    tune = ids("M:6/8\nL:1/8\n", "K:D\n", '"D"', "A", "d3", "|", "(3", "A", "A", "A", "|", "d3", "e/", ":|", "A")
    state = network.prime(torch.eye(4)[:1], torch.zeros(1, network.state_size))
    with torch.no_grad():
        whole = network(tune, state)[1]
        assert whole[0, n : n + k].tolist() == [1, 0, 0, 0, 1, 1]
        assert whole[0, n + k :].tolist() == [12, 0]
        counts = []
        for t in range(tune.shape[1]):
            _, state = network(tune[:, t : t + 1], state)
            counts.append(tuple(state[0, n + k :].tolist()))
    assert torch.equal(state[:, n:], whole[:, n:])
    # ticks since the bar line, bar lines since the section's start; a triplet's three eighths take two eighths' time
    assert [counts[t] for t in (3, 4, 5, 6, 9, 10, 12, 13)] == [
        (12, 0), (48, 0), (0, 1), (-12, 1), (24, 1), (0, 2), (42, 2), (0, 0),
    ]  # fmt: skip


def test_a_tune_is_moved_by_its_notes_accidentals_and_chords() -> None:
    example = Example("jig", "6/8", "G", '"G"GAB "D7"d^c=f|"Em"gfe _Bcd|')
    moved = melody_data.moved(example, "D")
    assert moved is not None
    assert (moved.key, moved.metre) == ("D", "6/8")
    before, after = (tunes.parse(each.text).played() for each in (example, moved))
    steps = {b.pitch - a.pitch for a, b in zip(before[0], after[0], strict=True)}
    assert steps in ({7}, {-5})
    assert [(b.root - a.root) % 12 for a, b in zip(before[1], after[1], strict=True)] == [7, 7, 7]


def test_lengths_are_written_in_eighths() -> None:
    assert melody_data.written_anew("d/2e/2f3/2|", "1/4") == "def3|"
    assert melody_data.written_anew('[E3c3]-"D/f+"A/2~B|\\n(cd)z|', "1/8") == 'c3-"D"A/B|\ncdz|'


def test_a_tune_that_is_cut_or_wrong_is_judged_so() -> None:
    head = [melody.opening("jig"), "M:6/8\nL:1/8\n", "K:D\n"]
    good, short = [*head, "d3", "d3", "|"], [*head, "d3", "d3", "|", "d3", "|", "d3", "d3", "|"]
    assert melody_judges.judge([good, short, [*head, "(3", "|"], []]) == (
        [True, True, False, False],
        [True, False, False, False],
    )


def test_the_classifier_tells_genres_apart() -> None:
    jigs = [("jig", ["A", "A", "A", " ", "A", "A", "A", "|"] * 3)] * 3
    reels = [("reel", ["A", "A", "A", "A", " ", "B", "A", "A", "A", "|"] * 3)] * 3
    classifier = melody_judges.GenreClassifier(jigs + reels)
    assert classifier.guess([jigs[0][1], reels[0][1]]) == ["jig", "reel"]


def test_the_likeliest_tokens_are_kept_as_the_server_keeps_them() -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 40)
    kept = melody_draws.likeliest(torch.softmax(logits / 0.9, dim=-1), 0.8) > 0
    seeds = np.arange(64, dtype=np.uint64)
    for position in range(50):
        ids = sample(
            logits.numpy(),
            np.full(64, 0.9, np.float32),
            np.zeros(64, np.int64),
            np.full(64, 0.8, np.float32),
            seeds,
            np.full(64, position, np.uint64),
        )[0]
        assert kept[torch.arange(64), torch.from_numpy(ids)].all()
    assert 1 < kept.sum(dim=1).float().mean() < 30


def test_draws_of_one_seed_are_the_same_and_judged() -> None:
    torch.manual_seed(0)
    network = melody.Melody(WORDS, 12, 8).eval()
    sampling = melody_draws.Sampling(0.9, 0.9)
    assert str(sampling) == "temperature 0.9, top_p 0.9"
    one, two, other = (
        melody_draws.generate(network, list(melody.GENRES), sampling, max_steps=20, seed=seed) for seed in (1, 1, 2)
    )
    assert one == two != other
    judges = melody_judges.Judges([Example(genre, "6/8", "D", "A3A3|" * 8) for genre in melody.GENRES])
    (found,) = melody_draws.drawn(network, judges, sampling, [1], 8)
    assert 0 <= found.genre <= 1
    assert found.different > 0.5
    assert judges.copied([[*"AAAAAA"], ["A3", "A3", "|"] * 8]) == 1.0


@has_data
def test_the_data_are_the_ones_of_the_card() -> None:
    examples, num_refused = melody_data.load(DATA)
    assert (len(examples), num_refused) == (863, 53)
    assert all(not tunes.parse(each.text).problems() for each in examples)
    assert all("".join(each.tokens) == each.text for each in examples)
    parts = melody_data.split(examples)
    assert {part: len(several) for part, several in parts.items()} == {"train": 693, "valid": 85, "test": 85}
    assert len({each.body for several in parts.values() for each in several}) == 863


@has_data
def test_a_moved_tune_comes_back_as_it_was() -> None:
    for example in melody_data.load(DATA)[0][:40]:
        other = melody_data.moved(example, "A" if not example.key.endswith("m") else "Bm")
        if other is not None:
            assert not tunes.parse(other.text).problems()
            again = melody_data.moved(other, example.key)
            assert again is None or len(again.tokens) == len(example.tokens)


@has_data
def test_one_epoch_of_a_small_network_lowers_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    few = melody_data.load(DATA)[0][:60]
    monkeypatch.setattr(melody, "load", lambda data: (few, 0))
    network = melody.build(DATA)
    assert network.words[:2] == ["<begin>", "<end>"]
    small = melody.Melody(network.words, 16, 8)
    before = melody_judges.nats(small.eval(), few[:10])
    melody.train(small, DATA, Trainer(small, is_quiet=True, max_epochs=3))
    assert melody_judges.nats(small, few[:10]) < before


def test_the_weights_of_gplv3_are_in_no_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = project["tool"]["hatch"]["build"]["targets"]
    assert all(not package.startswith("models/zoo") for package in build["wheel"]["packages"])
    assert "models/zoo" in build["sdist"]["exclude"]
    assert "GNU GENERAL PUBLIC LICENSE" in (ROOT / "models" / "zoo" / "melody" / "LICENSE.GPLv3").read_text()
