"""int8 graphs: near float32, and independent of rows, cuts and batch-mates."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

import onnx  # noqa: E402
from cellar_models import oracle, sentiment, variants  # noqa: E402
from cellar_models import quantize as quantize_module  # noqa: E402
from cellar_models.cli import MODELS  # noqa: E402
from cellar_models.export import export  # noqa: E402
from cellar_models.network import Network  # noqa: E402
from cellar_models.quantize import QuantizeError, quantize  # noqa: E402
from cellar_models.recurrent import Recurrent  # noqa: E402
from cellar_models.variants import INT8_FILE, Served, add_int8, measure  # noqa: E402
from cellar_models.verify import VerifyError, open_session  # noqa: E402
from cellar_proto.v1.manifest_pb2 import Manifest, StepSpec  # noqa: E402
from google.protobuf import json_format  # noqa: E402

ZOO = Path(__file__).parents[2] / "models" / "zoo"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:.*torch.jit.*:FutureWarning",
)


class Small(Network):
    """Layers and a head, nothing else."""

    name = "small"

    def __init__(self, kind: str, hidden_size: int = 24, num_layers: int = 2) -> None:
        super().__init__()
        self.cells = Recurrent(kind, 5, hidden_size, num_layers)
        self.head = torch.nn.Linear(hidden_size, 3)
        self.state_size = self.cells.state_size

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, state = self.cells(x, state)
        return self.head(y), state

    def equations(self, x: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, state = oracle.recurrent(self.cells, x, state)
        return oracle.linear(self.head, y), state

    def example(self, batch: int, time: int, rng: np.random.Generator) -> np.ndarray:
        return (rng.standard_normal((batch, time, 5)) * [1, 1, 5, 0.1, 1]).astype(np.float32)

    def describe(self, manifest: Manifest, folder: Path) -> None:
        manifest.parts.extend(self.cells.parts("cells"))
        manifest.output.CopyFrom(StepSpec(shape=[3]))


@pytest.fixture(scope="module", params=["rnn", "lstm", "gru"])
def entry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Path]:
    """A network of each kind with its float32 and int8 graphs."""
    torch.manual_seed(0)
    network = Small(request.param)
    folder = export(network, tmp_path_factory.mktemp("zoo"), card="# small\n")
    add_int8(network, folder, lambda served: "| a | table |")
    return network, folder


def test_int8_is_near_float32_and_the_same_however_cut(entry: tuple[Network, Path]) -> None:
    network, folder = entry
    distance = measure(network, folder)
    assert 0 < distance.one_step < 0.05
    assert 0 < distance.whole < 0.1
    assert distance.is_bit_identical
    kinds = [node.op_type for node in onnx.load(folder / INT8_FILE).graph.node]
    assert kinds.count("Scan") == 2
    assert not {"LSTM", "GRU", "RNN"} & set(kinds)


def test_no_batch_mate_moves_an_answer(entry: tuple[Network, Path]) -> None:
    network, folder = entry
    session = open_session(folder / INT8_FILE)
    rng = np.random.default_rng(5)
    x, state = network.example(9, 6, rng), rng.uniform(-1, 1, (9, network.state_size)).astype(np.float32)
    alone = session.run(None, {"x": x[:1], "state": state[:1]})
    for what in (1e30, -1e30, np.nan, np.inf):
        x[1:], state[1:] = what, what
        y, following = session.run(None, {"x": x, "state": state})
        assert np.array_equal(y[:1], alone[0])
        assert np.array_equal(following[:1], alone[1])


def test_the_manifest_and_the_card_say_what_was_added(entry: tuple[Network, Path]) -> None:
    network, folder = entry
    manifest = json_format.Parse((folder / "manifest.json").read_text(), Manifest())
    (variant,) = manifest.variants
    assert (variant.precision, variant.step_file) == ("int8", INT8_FILE)
    assert INT8_FILE in manifest.sha256
    assert variant.parity.is_bit_identical
    card = (folder / "CARD.md").read_text()
    assert card.startswith("# small\n\n## int8\n")
    assert card.endswith("| a | table |\n")
    add_int8(network, folder)
    assert (folder / "CARD.md").read_text().count("## int8") == 1
    again = json_format.Parse((folder / "manifest.json").read_text(), Manifest())
    assert again == manifest


def test_evaluation_runs_on_the_int8_graph(entry: tuple[Network, Path]) -> None:
    network, folder = entry
    served = Served(network, folder / INT8_FILE)
    x, state = torch.ones(2, 3, 5), torch.zeros(2, network.state_size)
    with torch.no_grad():
        y, _ = served(x, state)
        exact, _ = network(x, state)
    assert served.state_size == network.state_size
    assert 0 < float((y - exact).abs().max()) < 0.1


def test_what_is_far_from_float32_is_not_added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Small("rnn", 4, 1)
    folder = export(network, tmp_path)
    before = (folder / "manifest.json").read_text()
    monkeypatch.setattr(variants, "FARTHEST", 1e-9)
    with pytest.raises(VerifyError, match="small: int8 differs"):
        add_int8(network, folder)
    assert not (folder / INT8_FILE).exists()
    assert (folder / "manifest.json").read_text() == before


def test_a_large_embedding_is_kept_in_eight_bits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = ["[UNK]", *(f"w{i}" for i in range(99))]
    network = sentiment.Sentiment(words, 8, 6)
    torch.nn.init.normal_(network.head.weight)  # before training it is nothing, and no table matters
    folder = export(network, tmp_path)
    monkeypatch.setattr(quantize_module, "TABLE_SIZE", 800)
    add_int8(network, folder)
    tables = [each for each in onnx.load(folder / INT8_FILE).graph.initializer if list(each.dims) == [100, 8]]
    assert [each.data_type for each in tables] == [onnx.TensorProto.INT8]
    assert 0 < measure(network, folder).whole < 0.1


def test_a_graph_without_recurrent_layers_is_refused() -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "plain",
        [value("x", TensorProto.FLOAT, ["n"])],
        [value("y", TensorProto.FLOAT, ["n"])],
    )
    with pytest.raises(QuantizeError, match="no recurrent layer"):
        quantize(helper.make_model(graph), {"x": np.zeros(1, np.float32)})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_committed_artefact_has_int8_and_its_card_says_how_good_or_why_not(name: str) -> None:
    folder = ZOO / name / "1"
    manifest = json_format.Parse((folder / "manifest.json").read_text(), Manifest())
    if not manifest.variants:
        assert re.search(r"^No int8: .*differs from float32 by 0\.\d+", (folder / "CARD.md").read_text(), re.MULTILINE)
        return
    assert [(each.precision, each.parity.is_bit_identical) for each in manifest.variants] == [("int8", True)]
    assert "float32 | int8 |" in (folder / "CARD.md").read_text()
