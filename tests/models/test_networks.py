"""Equations = eager = TorchScript = ONNX Runtime, however cut; and what is refused."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models import describe, digits, forecast, oracle, sentiment, translate  # noqa: E402
from cellar_models.cli import MODELS, main  # noqa: E402
from cellar_models.data import DataChanged, DataMissing, read  # noqa: E402
from cellar_models.export import export, write_graphs  # noqa: E402
from cellar_models.network import Network  # noqa: E402
from cellar_models.pieces import source_pieces, target_pieces  # noqa: E402
from cellar_models.recurrent import Recurrent  # noqa: E402
from cellar_models.training import Trainer  # noqa: E402
from cellar_models.verify import VerifyError, verify  # noqa: E402
from cellar_proto.v1.manifest_pb2 import Manifest  # noqa: E402
from google.protobuf import json_format  # noqa: E402

ZOO = Path(__file__).parents[2] / "models" / "zoo"
pytestmark = pytest.mark.filterwarnings(
    # TorchScript works and is said to be on its way out; it is part of what an artefact promises
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:.*torch.jit.*:FutureWarning",
)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_layers_compute_their_equations(kind: str, num_layers: int) -> None:
    torch.manual_seed(0)
    layers = Recurrent(kind, 5, 7, num_layers).double()
    x, state = torch.randn(4, 9, 5).double(), torch.randn(4, layers.state_size).double()
    with torch.no_grad():
        y, following = layers(x, state)
    expected, expected_state = oracle.recurrent(layers, x.numpy(), state.numpy())
    assert np.abs(y.numpy() - expected).max() < 1e-12
    assert np.abs(following.numpy() - expected_state).max() < 1e-12


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_the_parts_tile_the_state(kind: str) -> None:
    layers = Recurrent(kind, 5, 7, 2)
    ends = [part.offset + part.shape[0] for part in layers.parts("cell")]
    assert [part.offset for part in layers.parts("cell")] == [0, *ends[:-1]]
    assert ends[-1] == layers.state_size


def test_recurrent_weights_start_orthogonal_and_an_lstm_remembers() -> None:
    layers = Recurrent("lstm", 5, 8).layers
    block = layers.weight_hh_l0.data[:8]
    assert torch.allclose(block @ block.T, torch.eye(8), atol=1e-5)
    assert (layers.bias_ih_l0.data[8:16] == 1).all()


NETWORKS = {
    "digits": lambda: digits.Digits(8),
    "sentiment": lambda: sentiment.Sentiment(["[UNK]", "a", "b", "c"], 4, 6),
    "describe": lambda: describe.Describe(
        ["<begin>", "<end>", "<unk>", "is", "<name>"], ["act=inform", "slot=name"], ["name"], [], 6, 4
    ),
    "forecast": lambda: forecast.Forecast(6),
    "translate": lambda: translate.Translate(
        source_pieces(["they went home ."] * 2, 40),
        target_pieces(["ils sont là ."] * 2, 40),
        embedding_size=4,
        hidden_size=6,
        max_source=5,
    ),
}
# Bytes of all files of an artefact; two languages have two tables of word pieces.


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_an_untrained_network_exports_and_verifies(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Network = NETWORKS[name]()
    folder = export(network, tmp_path)
    manifest = json_format.Parse((folder / "manifest.json").read_text(), Manifest())
    assert sum(int(np.prod(part.shape)) for part in manifest.parts) == network.state_size == manifest.state_size
    assert 0 < manifest.parity.max_relative_error < 1e-5
    assert manifest.opset == 18


def test_what_fails_is_not_written(tmp_path: Path) -> None:
    network = digits.Digits(8)
    folder = tmp_path / "graphs"
    folder.mkdir()
    write_graphs(network, folder)
    network.head.bias.data[0] += 0.1
    with pytest.raises(VerifyError, match="digits: TorchScript differs"):
        verify(network, folder)

    class Wrong(digits.Digits):
        def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            y, following = super().equations(x, state)
            return y * 1.001, following

    with pytest.raises(VerifyError):
        export(Wrong(8), tmp_path / "zoo")
    assert not (tmp_path / "zoo" / "digits").exists()


def test_a_fixed_axis_is_found(tmp_path: Path) -> None:
    import onnx

    network = digits.Digits(8)
    write_graphs(network, tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VerifyError, match="axis 1 of x is fixed at 4"):
        verify(network, tmp_path)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_committed_artefacts_are_whole(name: str) -> None:
    folder = ZOO / name / "1"
    manifest = json_format.Parse((folder / "manifest.json").read_text(), Manifest())
    assert manifest.parity.max_relative_error < 1e-5
    for file, sha256 in manifest.sha256.items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == sha256
        assert not re.search(rb"/(home|root|tmp|usr|work)/", (folder / file).read_bytes()), file
    assert (folder / "model.onnx").stat().st_size < 10_000_000
    assert "baseline" in (folder / "CARD.md").read_text()


def test_the_zoo_is_small() -> None:
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < 60_000_000


def test_training_lowers_the_loss_and_keeps_the_best() -> None:
    torch.manual_seed(0)
    network = digits.Digits(16)
    digits.train(network, Path(), Trainer(network, is_quiet=True, max_epochs=4))
    images, classes, part = digits.load()
    with torch.no_grad():
        y = network(torch.from_numpy(images[part == 1])[:, None], torch.zeros(int((part == 1).sum()), 16))[0]
    assert (y[:, 0].argmax(1).numpy() == classes[part == 1]).mean() > 0.8


def test_early_stopping_keeps_the_best_weights() -> None:
    network = torch.nn.Linear(1, 1)
    losses = iter([3.0, 1.0, 2.0, 2.5, 9.0])

    def epoch() -> float:
        network.weight.data += 1
        return 0.0

    first = float(network.weight.detach())
    found = Trainer(network, is_quiet=True).fit(epoch, lambda: next(losses), num_epochs=5, patience=2)
    assert found == [3.0, 1.0, 2.0, 2.5]
    assert float(network.weight.detach()) == pytest.approx(first + 2)


def test_a_missing_data_set_says_where_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataMissing, match=r"jbrownlee/Datasets.*CELLAR_DATA"):
        forecast.load(tmp_path)
    assert main(["train", "forecast", "--data", str(tmp_path)]) == 1
    assert "CELLAR_DATA" in capsys.readouterr().err
    (tmp_path / "sentiment_rt").mkdir()
    (tmp_path / "sentiment_rt" / "rt-polarity.neg").write_text("changed")
    with pytest.raises(DataChanged):
        read(tmp_path, "sentiment_rt", "rt-polarity.neg", sentiment.FILES["rt-polarity.neg"])


def test_what_has_no_lesser_form_is_not_ablated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "digits"]) == 1
    assert "digits has no lesser form" in capsys.readouterr().err


def test_verify_fails_for_a_swapped_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, other = digits.Digits(8), digits.Digits(8)
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    write_graphs(one, tmp_path / "one")
    write_graphs(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.onnx", tmp_path / "one" / "model.onnx")
    with pytest.raises(VerifyError, match="ONNX Runtime"):
        verify(one, tmp_path / "one")
