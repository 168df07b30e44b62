"""chars-en and chars-ru: the data, the codec, the training's pieces, and the artefacts as their users have them."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import chars  # noqa: E402
from cellar_models.chars import ENGLISH, RUSSIAN, Chars, Language  # noqa: E402
from cellar_models.export import export  # noqa: E402
from cellar_models.training import Trainer  # noqa: E402
from cellar_proto.v1.manifest_pb2 import MANY_TO_MANY_ALIGNED, Manifest  # noqa: E402
from cellar_server.codecs.text import TextCodec  # noqa: E402
from google.protobuf import json_format  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:.*torch.jit.*:FutureWarning",
)
DATA = Path(os.environ.get("CELLAR_DATA", "data"))


def small() -> Chars:
    torch.manual_seed(0)
    return Chars(ENGLISH, ["<unk>", "\n", " ", "a", "é", "日"], 4, 6)


def test_an_untrained_network_exports_with_its_codec(tmp_path: Path) -> None:
    network = small()
    folder = export(network, tmp_path)
    manifest = json_format.Parse((folder / "manifest.json").read_text(), Manifest())
    assert manifest.mode == MANY_TO_MANY_ALIGNED
    assert manifest.parity.max_relative_error < 1e-5
    assert list(manifest.output.names) == network.characters
    assert manifest.output.names[manifest.generation.begin_id] == "\n"
    codec = TextCodec(folder / manifest.text.tokenizer_file, is_by_character=True)
    text = "a é\n日x"
    ids, rest = codec.take(b"", text.encode(), True)
    assert ids.tolist() == network.ids(text).tolist() == [3, 2, 4, 1, 5, 0]
    assert rest == b""


def test_outputs_are_log_probabilities() -> None:
    with torch.no_grad():
        y, _ = small()(torch.tensor([[3, 2, 1], [0, 5, 4]]), torch.zeros(2, 24))
    assert torch.allclose(y.exp().sum(-1), torch.ones(2, 3), atol=1e-6)


def test_nats_are_those_of_every_character_but_the_first() -> None:
    network = small().eval()
    text = "a é\n" * 1200  # more than one piece
    ids = torch.from_numpy(network.ids(text))[None]
    with torch.no_grad():
        y, _ = network(ids[:, :-1], torch.zeros(1, network.state_size))
    wanted = -float(y[0].gather(1, ids[0, 1:, None]).mean())
    assert chars.nats(network, text) == pytest.approx(wanted, rel=1e-5)


def language(folder: Path) -> Language:
    """A text of 16,000 characters in which each of 4 follows the one before it."""
    text = "abc\n" * 4000
    (folder / "made").mkdir()
    (folder / "made" / "text.txt").write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return replace(ENGLISH, name="made", dataset="made", texts=(("text.txt", sha256),), num_epochs=20, dropout=0.0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in `cellar-models train`: networks this small gain nothing by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_training_learns_what_follows(tmp_path: Path, one_thread: None) -> None:
    torch.manual_seed(0)
    made = language(tmp_path)
    learn, valid = chars.load(made, tmp_path)
    assert (len(learn), len(valid)) == (14_400, 1_600)
    network = Chars(made, ["<unk>", *sorted(set(learn))], 4, 16)
    kept: list[float] = []
    trainer = Trainer(network, learning_rate=2e-2, is_quiet=True, keep=lambda each: kept.append(0.0))
    chars.train(network, tmp_path, trainer)
    assert len(kept) == 20
    assert not network.training
    assert chars.nats(network, valid) < 0.5 < math.log(4)


def test_the_step_size_rises_once_and_falls_to_nothing() -> None:
    trainer = Trainer(small(), learning_rate=1e-3)
    rates = []
    for progress in np.linspace(0, 1, 101):
        trainer.set_rate(float(progress), peak=3.0, warm=0.1)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[0] == 0
    assert max(rates) == rates[10] == pytest.approx(3e-3)
    assert np.all(np.diff(rates[:11]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("language", "counts"),
    [(ENGLISH, (1_003_854, 111_540, 66)), (RUSSIAN, (2_102_141, 173_566, 147))],
    ids=["en", "ru"],
)
def test_the_data_is_the_one_described(language: Language, counts: tuple[int, int, int]) -> None:
    if not (DATA / language.dataset).is_dir():
        pytest.skip(f"CELLAR_DATA holds no {language.dataset}")
    learn, valid = chars.load(language, DATA)
    assert (len(learn), len(valid), len(chars.build(language, DATA).characters)) == counts
    assert set(valid) <= set(learn)  # so no character of it is free
