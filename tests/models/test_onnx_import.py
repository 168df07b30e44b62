"""An ONNX file with state inputs and outputs becomes an entry that is served as the file itself runs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_client import Client
from cellar_models.cli import main
from cellar_models.own.imported import import_onnx
from cellar_models.own.validate import validate
from cellar_models.own.why import ExportError, Why
from cellar_server.config import Config

from tests.contract.conftest import Running

HIDDEN, FEATURES = 5, 3


def _save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, np.ndarray]) -> Path:
    made = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "source", inputs, outputs, made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def lstm(path: Path, time: Any = "seq", batch: Any = "batch", *, rate: bool = False) -> Path:
    """x [time, batch, 3], h_in and c_in [1, batch, 5] -> logits [time, batch, 2], h_out, c_out; rate: a scalar too."""
    rng = np.random.default_rng(0)
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node(
            "LSTM", ["x", "w", "r", "b", "", "h_in", "c_in"], ["y4", "h_out", "c_out"], hidden_size=HIDDEN
        ),
        helper.make_node("Squeeze", ["y4", "one"], ["y"]),
        helper.make_node("MatMul", ["y", "head"], ["scores"]),
        helper.make_node("Mul", ["scores", "rate"], ["logits"])
        if rate
        else helper.make_node("Identity", ["scores"], ["logits"]),
    ]
    inputs = [
        value("x", TensorProto.FLOAT, [time, batch, FEATURES]),
        value("h_in", TensorProto.FLOAT, [1, batch, HIDDEN]),
        value("c_in", TensorProto.FLOAT, [1, batch, HIDDEN]),
        *([value("rate", TensorProto.FLOAT, [])] if rate else []),
    ]
    outputs = [
        value("logits", TensorProto.FLOAT, [time, batch, 2]),
        value("h_out", TensorProto.FLOAT, [1, batch, HIDDEN]),
        value("c_out", TensorProto.FLOAT, [1, batch, HIDDEN]),
    ]
    weights = {
        "w": rng.standard_normal((1, 4 * HIDDEN, FEATURES)).astype(np.float32),
        "r": rng.standard_normal((1, 4 * HIDDEN, HIDDEN)).astype(np.float32),
        "b": rng.standard_normal((1, 8 * HIDDEN)).astype(np.float32),
        "head": rng.standard_normal((HIDDEN, 2)).astype(np.float32),
        "one": np.array([1]),
    }
    return _save(path, nodes, inputs, outputs, weights)


def cell(path: Path, batch: Any = "batch", *, fixed: bool = False) -> Path:
    """x [batch, 3], state [batch, 5] -> out [batch, 5], new_state; fixed: reshaped to one row."""
    rng = np.random.default_rng(1)
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["state", "r"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["tanh"]),
        helper.make_node("Reshape", ["tanh", "shape"], ["new_state"]),
        helper.make_node("Mul", ["new_state", "new_state"], ["out"]),
    ]
    inputs = [value("x", TensorProto.FLOAT, [batch, FEATURES]), value("state", TensorProto.FLOAT, [batch, HIDDEN])]
    outputs = [value("out", TensorProto.FLOAT, [batch, HIDDEN]), value("new_state", TensorProto.FLOAT, [batch, HIDDEN])]
    weights = {
        "w": rng.standard_normal((FEATURES, HIDDEN)).astype(np.float32),
        "r": 0.3 * rng.standard_normal((HIDDEN, HIDDEN)).astype(np.float32),
        "shape": np.array([1 if fixed else -1, HIDDEN]),
    }
    return _save(path, nodes, inputs, outputs, weights)


PAIRS = {"h_in": "h_out", "c_in": "c_out"}


def test_an_open_time_first_graph_is_served_as_it_runs(tmp_path: Path) -> None:
    file = lstm(tmp_path / "speech.onnx")
    found = import_onnx(file, tmp_path / "models", name="speech", pairs=PAIRS)
    assert (found.state_size, found.is_scan) == (2 * HIDDEN, False)
    x = np.random.default_rng(5).standard_normal((6, FEATURES)).astype(np.float32)
    zeros = np.zeros((1, 1, HIDDEN), np.float32)
    truth = onnxruntime.InferenceSession(file).run(["logits"], {"x": x[:, None], "h_in": zeros, "c_in": zeros})[0][:, 0]
    running = Running(Config(listen="127.0.0.1:0", models=tmp_path / "models", drain_s=5, max_sessions=16))
    try:
        with Client(running.address) as client, client.session("speech") as session:
            steps = [np.asarray(session.step(row)).reshape(-1) for row in x[:3]]
            np.testing.assert_allclose(steps, truth[:3], atol=1e-5)
            np.testing.assert_allclose(np.asarray(session.step(x[3:])), truth[3:], atol=1e-5)
            assert sorted(session.state()) == ["c_in", "h_in"]
    finally:
        running.stop()
    assert validate(found.folder).is_good


def test_fixed_outer_axes_are_opened_when_said(tmp_path: Path) -> None:
    file = lstm(tmp_path / "speech.onnx", 1, 1)
    found = import_onnx(
        file, tmp_path, name="speech", pairs=PAIRS, axes=("time", "batch"), state_axes={"h_in": 1, "c_in": 1}
    )
    assert not found.is_scan
    assert found.report.max_relative_error < 1e-5


def test_a_graph_of_one_step_runs_over_time(tmp_path: Path) -> None:
    found = import_onnx(
        cell(tmp_path / "cell.onnx"), tmp_path, name="cell", pairs={"state": "new_state"}, axes=("batch",)
    )
    assert found.is_scan
    assert validate(found.folder).is_good
    assert "run step by step" in (found.folder / "CARD.md").read_text()


def test_a_size_fixed_inside_is_refused(tmp_path: Path) -> None:
    file = cell(tmp_path / "cell.onnx", fixed=True)
    with pytest.raises(ExportError) as refused:
        import_onnx(file, tmp_path / "models", name="cell", pairs={"state": "new_state"}, axes=("batch",))
    assert refused.value.why is Why.FIXED
    assert not (tmp_path / "models").exists()


def test_another_input_is_set_for_good(tmp_path: Path) -> None:
    file = lstm(tmp_path / "speech.onnx", rate=True)
    with pytest.raises(ExportError, match=r"SEVERAL_INPUTS: .*--constant NAME=VALUE"):
        import_onnx(file, tmp_path, name="speech", pairs=PAIRS)
    one = import_onnx(file, tmp_path, name="speech", pairs=PAIRS, constants={"rate": 1.0})
    two = import_onnx(file, tmp_path, name="speech", pairs=PAIRS, constants={"rate": 2.0})
    assert (one.folder.name, two.folder.name) == ("1", "2")
    feed = {"x": np.ones((1, 1, FEATURES), np.float32), "state": np.zeros((1, 2 * HIDDEN), np.float32)}
    outputs = [onnxruntime.InferenceSession(each.folder / "model.onnx").run(["y"], feed)[0] for each in (one, two)]
    np.testing.assert_allclose(2 * outputs[0], outputs[1], rtol=1e-6)


def test_what_is_guessed_is_asked_and_never_taken_silently(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lstm(tmp_path / "speech.onnx")
    asked: list[list[str]] = []

    def refuse(guesses: list[str]) -> bool:
        asked.append(guesses)
        return False

    with pytest.raises(ExportError) as refused:
        import_onnx(file, tmp_path / "models", name="speech", pairs={}, confirm=refuse)
    assert refused.value.why is Why.PAIRS
    assert asked == [["--pair h_in:h_out", "--pair c_in:c_out"]]
    command = ["import-onnx", str(file), "--name", "speech", "--models", str(tmp_path / "models")]
    assert main(command) == 1
    assert "--pair h_in:h_out" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
    assert main([*command, "--accept-proposed"]) == 0
    assert "taken as proposed: --pair h_in:h_out --pair c_in:c_out" in capsys.readouterr().out
    assert main([*command, "--pair", "h_in:h_out", "--pair", "c_in:c_out"]) == 0
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 1), ("n", 1)])
def test_a_prompt_asks_where_there_is_somebody(
    answer: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer + "\n"))
    file = lstm(tmp_path / "speech.onnx")
    assert main(["import-onnx", str(file), "--name", "speech", "--models", str(tmp_path / "models")]) == code
    out = capsys.readouterr().out
    assert "--pair h_in:h_out" in out
    assert "is this so?" in out
    assert (tmp_path / "models").exists() == (code == 0)


def test_axes_that_the_file_does_not_name_are_asked_too(tmp_path: Path) -> None:
    file = lstm(tmp_path / "speech.onnx", 1, 1)
    with pytest.raises(ExportError, match=r"AXES: .*--axes batch,time \(of x \[1, 1, 3\]\).*--state-axis h_in=1"):
        import_onnx(file, tmp_path / "models", name="speech", pairs=PAIRS)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"pairs": {"h": "h_out"}}, Why.PAIRS),
        ({"pairs": {"h_in": "h_out"}}, Why.SEVERAL_INPUTS),
        ({"pairs": PAIRS, "output": "nothing"}, Why.SEVERAL_OUTPUTS),
        ({"pairs": PAIRS, "axes": ("features",)}, Why.AXES),
        ({"pairs": PAIRS, "state_axes": {"h_in": 4}}, Why.AXES),
        ({"pairs": PAIRS, "constants": {"speed": 1.0}}, Why.EXAMPLE),
        ({"pairs": PAIRS, "name": "Speech"}, Why.NAME),
    ],
)
def test_what_contradicts_the_file_is_said(options: dict[str, Any], why: Why, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as refused:
        import_onnx(lstm(tmp_path / "speech.onnx"), tmp_path / "models", **{"name": "speech", **options})
    assert refused.value.why is why


def test_what_is_no_model_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.onnx").write_bytes(b"not a model")
    assert main(["import-onnx", str(tmp_path / "no.onnx"), "--name", "no"]) == 1
    assert "is no ONNX model" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["import-onnx", "x.onnx", "--name", "no", "--pair", "alone"])
