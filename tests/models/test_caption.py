"""caption: what it sees does not hang on the boxes' order; the data, and the scenes that are made from them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import caption, caption_data, scenes  # noqa: E402
from cellar_models.export import export  # noqa: E402
from cellar_models.training import Trainer  # noqa: E402
from cellar_models.verify import open_session  # noqa: E402
from cellar_proto.v1.manifest_pb2 import Manifest  # noqa: E402
from cellar_proto.v1.tensor_pb2 import UINT8  # noqa: E402
from google.protobuf import json_format  # noqa: E402

DATA = Path(os.environ.get("CELLAR_DATA", "data"))
WORDS = ["<begin>", "<end>", "there", "is", "a", "black", "block"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:.*torch.jit.*:FutureWarning",
)
has_data = pytest.mark.skipif(not (DATA / "captions_nlvr").is_dir(), reason="CELLAR_DATA holds no captions_nlvr")


def test_an_untrained_network_exports_and_verifies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = caption.Caption(WORDS, 12, 8)
    folder = export(network, tmp_path)
    manifest = json_format.Parse((folder / "manifest.json").read_text(), Manifest())
    assert sum(int(np.prod(part.shape)) for part in manifest.parts) == network.state_size == manifest.state_size
    assert 0 < manifest.parity.max_relative_error < 1e-5
    assert (manifest.prime.condition.dtype, list(manifest.prime.condition.shape)) == (UINT8, [50, 200, 3])
    # what is seen does not depend on the pictures beside it by more than the tolerance
    prime = open_session(folder / "prime.onnx")
    pictures = network.example_condition(16, np.random.default_rng(0))
    state = np.zeros((16, network.state_size), np.float32)
    together = prime.run(None, {"x": pictures, "state": state})[0]
    for i in range(16):
        alone = prime.run(None, {"x": pictures[i : i + 1], "state": state[:1]})[0]
        np.testing.assert_allclose(alone[0], together[i], rtol=0, atol=1e-5 * np.abs(together).max())


def test_the_order_of_the_boxes_does_not_matter() -> None:
    torch.manual_seed(0)
    network = caption.Caption(WORDS).eval()
    pictures = torch.from_numpy(network.example_condition(4, np.random.default_rng(1)))
    turned = pictures.clone()
    turned[:, :, 0:50], turned[:, :, 150:200] = pictures[:, :, 150:200], pictures[:, :, 0:50]
    with torch.no_grad():
        one, other = network.see(pictures), network.see(turned)
    assert torch.allclose(one, other, atol=1e-6)
    assert not torch.allclose(one[0], one[1], atol=1e-6)


def test_sentences_are_learnt_in_plain_words() -> None:
    assert caption_data.words_of("ll towers contain 1 blue block.") == "all towers contain 1 blue block"
    assert caption_data.words_of("There is a box, with  2 items") == "there is a box with 2 items"


@has_data
def test_a_network_that_is_trained_blind_comes_to_know_words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    parts = {part: several[:40] for part, several in caption_data.load(DATA).items()}
    monkeypatch.setattr(caption, "load", lambda data: parts)
    network = caption.build(DATA)
    small = caption.Caption(network.words, 12, 8)
    seen = []
    see = small.see
    monkeypatch.setattr(small, "see", lambda condition: seen.append(int(condition.max())) or see(condition))
    caption.train(small, DATA, Trainer(small, is_quiet=True, max_epochs=1), is_blind=True)
    assert set(seen) == {0}
    assert len(set(caption.generate(small, np.zeros((3, 50, 200, 3), np.uint8)))) == 1


@has_data
def test_the_data_are_the_ones_of_the_card() -> None:
    parts = caption_data.load(DATA)
    assert {part: len(several) for part, several in parts.items()} == {"train": 1323, "valid": 155, "test": 171}
    said = [{scenes.plain(each.sentence) for each in several} for several in parts.values()]
    assert not said[0] & said[1]
    assert not said[0] & said[2]
    assert not said[1] & said[2]
    examples = [each for several in parts.values() for each in several]
    found = [scenes.is_true(each.sentence, each.scene) for each in examples]
    # every sentence of the data is true of its scene: what the reader says of them shows how well it reads
    assert sum(each is not None for each in found) == 1274
    assert sum(each is False for each in found) == 13


@has_data
def test_mixed_scenes_are_as_pictured() -> None:
    train = caption_data.load(DATA)["train"][:200]
    looks = {(scene.picture[:, k * 75 : k * 75 + 50].tobytes()): scene.scene[k] for scene in train for k in range(3)}
    for made in caption_data.mixed(train, 50, np.random.default_rng(0)):
        for k in range(3):
            assert looks[made.picture[:, k * 75 : k * 75 + 50].tobytes()] == made.scene[k]
        assert len({scenes.is_towers((box, box, box)) for box in made.scene}) == 1


@has_data
def test_true_sentences_are_those_that_are_judged_true() -> None:
    test = caption_data.load(DATA)["test"][:30]
    sentences = ["there is a black block", "there are 2 towers", "the sky is blue"]
    found = caption_data.true_sentences([each.scene for each in test], sentences)
    assert found.shape == (30, 3)
    assert not found[:, 2].any()
    assert found[:, 0].tolist() == [scenes.is_true(sentences[0], each.scene) for each in test]
