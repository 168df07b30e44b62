"""next-frame: clips that move as they say, and a network that learns to move what it sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import digits, next_frame  # noqa: E402
from cellar_models.export import export  # noqa: E402
from cellar_models.next_frame import NextFrame, clips  # noqa: E402
from cellar_models.training import Trainer  # noqa: E402
from cellar_proto.v1.manifest_pb2 import Manifest  # noqa: E402
from google.protobuf import json_format  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:.*torch.jit.*:FutureWarning",
)


def test_an_untrained_network_exports_and_verifies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NextFrame(12, 8)
    folder = export(network, tmp_path)
    manifest = json_format.Parse((folder / "manifest.json").read_text(), Manifest())
    assert manifest.state_size == network.state_size == 24
    assert 0 < manifest.parity.max_relative_error < 1e-5
    assert list(manifest.input.shape) == list(manifest.output.shape) == [20, 20]


def test_clips_follow_from_their_seed_and_keep_the_digits_whole() -> None:
    images = digits.load()[0]
    made = clips(5, 40, np.random.default_rng(3), images[:1])
    assert np.array_equal(made, clips(5, 40, np.random.default_rng(3), images[:1]))
    assert made.shape == (5, 40, 20, 20)
    assert made.min() == 0.0
    assert made.max() == images[0].max() / 16
    ink = made.sum((2, 3))
    # no pixel of the two digits leaves the frame; where they lie on one another there is less to be seen
    assert ink.max() <= 2 * images[0].sum() / 16 + 1e-3
    assert ink.min() >= images[0].sum() / 16 - 1e-3
    assert (np.abs(np.diff(made, axis=1)).sum((2, 3)) > 0).all()


def test_a_clip_that_moves_straight_is_foreseen_by_its_shift() -> None:
    clip = np.zeros((1, 4, 20, 20), np.float32)
    for t in range(4):
        clip[0, t, 3 + 2 * t, 4 + t] = 1.0
    foreseen = next_frame._straight_on(clip[:, :-2], clip[:, 1:-1])
    assert np.array_equal(foreseen, clip[:, 2:])


def test_outputs_are_grey_values_whatever_comes_in() -> None:
    torch.manual_seed(0)
    network = NextFrame(12, 8).eval()
    with torch.no_grad():
        y, state = network(torch.randn(2, 5, 20, 20) * 100, torch.zeros(2, 24))
    assert 0.0 <= float(y.min()) <= float(y.max()) <= 1.0 + 1e-6
    assert bool(state.abs().max() < 10)


def test_a_free_run_feeds_back_what_it_gave() -> None:
    torch.manual_seed(0)
    network = NextFrame(12, 8).eval()
    watched = network.example(2, 4, np.random.default_rng(0))
    made = next_frame.free_run(network, watched, 3)
    with torch.no_grad():
        whole, _ = network(torch.from_numpy(np.concatenate([watched, made[:, :2]], axis=1)), torch.zeros(2, 24))
    np.testing.assert_allclose(made, whole[:, 3:].numpy(), atol=1e-6)


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    network = NextFrame(16, 16)
    images = digits.load()[0]
    x = torch.from_numpy(clips(20, 12, np.random.default_rng(0), images))

    def error() -> float:
        with torch.no_grad():
            y, _ = network.eval()(x[:, :-1], torch.zeros(20, network.state_size))
        return float(((y - x[:, 1:]) ** 2).mean())

    before = error()
    next_frame.train(network, Path(), Trainer(network, is_quiet=True, max_epochs=1))
    assert error() < before
