"""Weights at half precision: rounded once, stored exactly, and what runs is the float32 graph."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models extra is not installed")

import cellar_models  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from cellar_models import describe, forecast, translate  # noqa: E402
from cellar_models.cards import card, training_of  # noqa: E402
from cellar_models.export import check_codecs, read_weights, write_graphs  # noqa: E402
from cellar_models.halves import LEAST, SUFFIX, pack, round_weights, unpack  # noqa: E402
from cellar_models.network import Network  # noqa: E402
from cellar_models.pieces import source_pieces, target_pieces  # noqa: E402
from cellar_models.quantize import quantize  # noqa: E402
from cellar_models.training import Result  # noqa: E402
from cellar_models.verify import Report, VerifyError, verify  # noqa: E402
from cellar_proto.v1.manifest_pb2 import Manifest  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:.*torch.jit.*:FutureWarning",
)
PRIMED = {
    "describe": lambda: describe.Describe(
        ["<begin>", "<end>", "<unk>", "is", "<name>"], ["act=inform", "slot=name"], ["name"], [], 32, 16
    ),
    "translate": lambda: translate.Translate(
        source_pieces(["they went home ."] * 2, 40),
        target_pieces(["ils sont là ."] * 2, 40),
        embedding_size=4,
        hidden_size=6,
        max_source=5,
    ),
}


def rounded(size: int = 24) -> Network:
    torch.manual_seed(0)
    network = forecast.Forecast(size)
    round_weights(network)
    return network


def stored(path: Path) -> dict[str, int]:
    return {each.name: each.data_type for each in onnx.load(path).graph.initializer}


def optimized(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def test_matrices_are_rounded_and_what_must_be_exact_is_not() -> None:
    network = nn.ModuleDict({"layers": nn.LSTM(3, 5), "large": nn.Linear(2, 2)})
    network.register_buffer("table", torch.full((4, 4), 0.1))
    with torch.no_grad():
        network["large"].weight[0, 0] = 70_000.0
    before = {name: value.clone() for name, value in network.state_dict().items()}
    round_weights(network)
    for name, value in network.state_dict().items():
        assert value.dtype == torch.float32
        if name.startswith("layers.weight"):
            assert torch.equal(value, before[name].half().float())
            assert not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name]), name
    again = {name: value.clone() for name, value in network.state_dict().items()}
    round_weights(network)
    assert all(torch.equal(value, again[name]) for name, value in network.state_dict().items())


def test_rounded_weights_lie_in_halves_and_run_as_the_float32_graph_does(tmp_path: Path) -> None:
    network = rounded()
    write_graphs(network, tmp_path)
    assert verify(network, tmp_path).max_relative_error < 1e-5
    types = stored(tmp_path / "model.onnx")
    assert [name for name, each in types.items() if each == TensorProto.FLOAT16] == [
        name for name in types if name.endswith(SUFFIX)
    ]
    assert any("onnx_w0" in name and name.endswith(SUFFIX) for name in types)
    packed, flat = onnx.load(tmp_path / "model.onnx"), onnx.load(tmp_path / "model.onnx")
    unpack(flat)
    assert all(each.data_type != TensorProto.FLOAT16 for each in flat.graph.initializer)
    one, two = optimized(packed, tmp_path / "one"), optimized(flat, tmp_path / "two")
    assert sorted(node.op_type for node in one.graph.node) == sorted(node.op_type for node in two.graph.node)
    weights = [
        sorted((each.data_type, numpy_helper.to_array(each).tobytes()) for each in made.graph.initializer)
        for made in (one, two)
    ]
    assert weights[0] == weights[1]
    rng = np.random.default_rng(0)
    for rows, steps in ((1, 1), (7, 5), (64, 16)):
        feed = {"x": network.example(rows, steps, rng), "state": np.zeros((rows, network.state_size), np.float32)}
        for found, expected in zip(run(packed, feed), run(flat, feed), strict=True):
            assert found.tobytes() == expected.tobytes()


def test_what_is_not_of_halves_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_graphs(forecast.Forecast(24), tmp_path)
    assert TensorProto.FLOAT16 not in stored(tmp_path / "model.onnx").values()
    whole, third = np.arange(LEAST, dtype=np.float32), np.full(LEAST, 1 / 3, np.float32)
    cases = {"whole": whole, "third": third, "large": whole * 1e6, "nan": whole * np.nan, "few": whole[:-1]}
    places = [
        helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [len(each)]) for name, each in cases.items()
    ]
    graph = helper.make_graph(
        [helper.make_node("Neg", [name], [f"{name}_out"]) for name in cases],
        "graph",
        [],
        places,
        [numpy_helper.from_array(each, name) for name, each in cases.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    exact = run(model, {})
    pack(model)
    onnx.checker.check_model(model)
    assert [each.name for each in model.graph.initializer if each.data_type == TensorProto.FLOAT16] == ["whole.half"]
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(run(model, {}), exact, strict=True))
    unpack(model)
    assert {each.name for each in model.graph.initializer} == set(cases)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(run(model, {}), exact, strict=True))


def test_torchscript_is_deflated_and_gives_the_weights_back(tmp_path: Path) -> None:
    network = rounded()
    write_graphs(network, tmp_path)
    with zipfile.ZipFile(tmp_path / "model.pt") as file:
        assert {each.compress_type for each in file.infolist()} == {zipfile.ZIP_DEFLATED}
    weights = read_weights(tmp_path)
    assert set(weights) == set(network.state_dict())
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", sorted(PRIMED))
def test_priming_and_stepping_hold_only_the_weights_that_they_use(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Network = PRIMED[name]()
    write_graphs(network, tmp_path)
    with torch.no_grad():
        prime, step = (torch.jit.load(str(tmp_path / f"{each}.pt")).state_dict() for each in ("prime", "model"))
    assert not {each.removeprefix("network.") for each in prime} & set(step)
    assert bool(prime) == (name == "translate")
    weights = read_weights(tmp_path)
    assert set(weights) == set(network.state_dict())
    assert all(torch.equal(weights[each], value) for each, value in network.state_dict().items())


def test_weights_of_other_words_are_refused(tmp_path: Path) -> None:
    network = PRIMED["describe"]()
    network.describe(Manifest(), tmp_path)
    check_codecs(network, tmp_path)
    (tmp_path / "vocabulary.json").write_text('["<begin>", "<end>", "<unk>", "<name>", "is"]')
    with pytest.raises(VerifyError, match="other ids"):
        check_codecs(network, tmp_path)
    (tmp_path / "vocabulary.json").unlink()
    with pytest.raises(VerifyError, match="other ids"):
        check_codecs(network, tmp_path)


def test_int8_of_a_graph_in_halves_is_that_of_the_float32_one(tmp_path: Path) -> None:
    network = rounded(32)
    write_graphs(network, tmp_path)
    packed, flat = onnx.load(tmp_path / "model.onnx"), onnx.load(tmp_path / "model.onnx")
    unpack(flat)
    feeds = {
        "x": network.example(4, 8, np.random.default_rng(0)),
        "state": np.zeros((4, network.state_size), np.float32),
    }
    one, two = quantize(packed, feeds).model, quantize(flat, feeds).model
    for found, expected in zip(run(one, feeds), run(two, feeds), strict=True):
        assert found.tobytes() == expected.tobytes()


class Pump(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(x)
        return self.head(y)


def test_a_users_network_is_exact_unless_halves_are_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Pump()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    exact = cellar_models.export(net, tmp_path, name="exact", example=torch.randn(4, 6, 2))
    halved = cellar_models.export(net, tmp_path, name="halved", example=torch.randn(4, 6, 2), half_weights=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert TensorProto.FLOAT16 not in stored(exact.folder / "model.onnx").values()
    assert TensorProto.FLOAT16 in stored(halved.folder / "model.onnx").values()
    assert (halved.folder / "model.onnx").stat().st_size < (exact.folder / "model.onnx").stat().st_size - 2 * LEAST
    assert not any("half precision" in note for note in exact.notes)
    assert any("half precision move its outputs by" in note for note in halved.notes)
    round_weights(net)
    x = torch.randn(3, 9, 2)
    y = run(onnx.load(halved.folder / "model.onnx"), {"x": x.numpy(), "state": np.zeros((3, 64), np.float32)})[0]
    with torch.no_grad():
        assert np.abs(y - net(x).numpy()).max() < 1e-6


@pytest.mark.parametrize("how", ["", "\nIt was cut short {so}:\nafter 3 epochs.\n"])
def test_a_card_tells_of_the_training_again(how: str) -> None:
    result = Result({"accuracy": 0.9}, {"chance": 0.5}, "share", is_better=True, notes="Of 10 rows.\n")
    saved = {"seed": 2, "seconds": 7.2, "clock": "of CPU", "how": how.replace("{", "{{").replace("}", "}}")}
    report = Report({"eager": 1e-7})
    text = card("forecast", result, saved).format(manifest=Manifest(), report=report)
    told = training_of(f"{text}\n## int8\n\nmore\n")
    assert told["trained"] == "7 s of CPU on one thread when this one was trained"
    assert card("forecast", result, told).format(manifest=Manifest(), report=report) == text
    with pytest.raises(VerifyError, match="how its weights were trained"):
        training_of("# pump\n")
