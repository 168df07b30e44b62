"""`cellar-models validate`: good entries are proved, and every way to break one is found."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models.cli import MODELS, main
from cellar_models.own.validate import validate

from tests.fakes.zoo import read_manifest, write_counter, write_manifest

ZOO = Path(__file__).parents[2] / "models" / "zoo"


def refuted(folder: Path) -> dict[str, str]:
    return {check: text for verdict, check, text in validate(folder).lines if verdict == "NO"}


def rehash(entry: Path) -> None:
    manifest = read_manifest(entry)
    manifest.sha256["model.onnx"] = hashlib.sha256((entry / "model.onnx").read_bytes()).hexdigest()
    write_manifest(entry, manifest)


def rewired(entry: Path, nodes: list[onnx.NodeProto]) -> None:
    """The counter's graph with other nodes."""
    model = onnx.load(entry / "model.onnx")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, entry / "model.onnx")
    rehash(entry)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_the_zoo_is_proved(name: str) -> None:
    found = validate(ZOO / name / "1")
    assert found.is_good, str(found)
    checks = {check for _, check, _ in found.lines}
    assert {"rows and cuts", "state round trip", "NaN of a batch-mate", "TorchScript", "speed"} <= checks
    for variant in read_manifest(ZOO / name / "1").variants:
        assert {f"{variant.precision}: {check}" for check in ("from float32", "rows and cuts", "batch-mates")} <= checks


def test_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = write_counter(tmp_path)
    assert main(["validate", str(entry)]) == 0
    out = capsys.readouterr().out
    assert "8 bytes of state a session" in out
    assert "ms a step of one row" in out
    assert out.endswith("proved\n")
    (entry / "model.onnx").write_bytes(b"changed")
    assert main(["validate", str(entry)]) == 1
    assert "REFUTED" in capsys.readouterr().out
    assert main(["validate", str(tmp_path)]) == 1


def test_a_missing_or_foreign_manifest_is_found(tmp_path: Path) -> None:
    assert "is missing" in refuted(tmp_path)["manifest"]
    entry = write_counter(tmp_path)
    entry.rename(tmp_path / "counter" / "2")
    assert refuted(tmp_path / "counter" / "2") == {"manifest": "it is of counter/1, the folder is counter/2"}


def test_changed_files_are_found(tmp_path: Path) -> None:
    entry = write_counter(tmp_path)
    with (entry / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert "sha256" in refuted(entry)["files and hashes"]


def test_parts_that_do_not_fill_the_row_are_found(tmp_path: Path) -> None:
    entry = write_counter(tmp_path)
    manifest = read_manifest(entry)
    manifest.parts[0].shape[0] = 1
    write_manifest(entry, manifest)
    assert refuted(entry) == {"state parts": "they hold 1 numbers; state_size is 2"}


def test_labels_that_do_not_fit_are_found(tmp_path: Path) -> None:
    entry = write_counter(tmp_path)
    manifest = read_manifest(entry)
    manifest.labels.append("one")
    write_manifest(entry, manifest)
    assert refuted(entry) == {"codecs and labels": "1 labels for a shape of [2]"}


def test_a_fixed_axis_is_found(tmp_path: Path) -> None:
    assert refuted(write_counter(tmp_path, time=4)) == {"graph": "axis 1 of 'x' is fixed at 4; it must be open"}


def test_a_state_that_is_not_carried_is_found(tmp_path: Path) -> None:
    entry = write_counter(tmp_path)
    rewired(
        entry,
        [
            helper.make_node("CumSum", ["x", "one"], ["y"]),  # from zero in every run
            helper.make_node("Gather", ["y", "last"], ["next_state"], axis=1),
        ],
    )
    assert "cuts of 1 steps: outputs differ" in refuted(entry)["rows and cuts"]


def test_rows_that_see_each_other_are_found(tmp_path: Path) -> None:
    entry = write_counter(tmp_path)
    rewired(
        entry,
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=1),
            helper.make_node("Add", ["x", "mean"], ["moved"]),
            helper.make_node("CumSum", ["moved", "one"], ["sums"]),
            helper.make_node("Unsqueeze", ["state", "axis"], ["before"]),
            helper.make_node("Add", ["sums", "before"], ["y"]),
            helper.make_node("Gather", ["y", "last"], ["next_state"], axis=1),
        ],
    )
    found = refuted(entry)
    assert "rows beside 256: outputs differ" in found["rows and cuts"]
    assert "changes the other rows' outputs" in found["NaN of a batch-mate"]


def test_bits_that_are_promised_and_not_kept_are_found(tmp_path: Path) -> None:
    entry = write_counter(tmp_path)
    manifest = read_manifest(entry)
    manifest.parity.is_bit_identical, manifest.parity.tolerance = True, 1e-3
    write_manifest(entry, manifest)
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [np.float32(1e-4)])
    model = onnx.load(entry / "model.onnx")
    model.graph.initializer.append(scale)
    onnx.save(model, entry / "model.onnx")
    rewired(
        entry,
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=1),
            helper.make_node("Mul", ["mean", "scale"], ["little"]),  # of the batch-mates, within the tolerance
            helper.make_node("Add", ["x", "little"], ["moved"]),
            helper.make_node("CumSum", ["moved", "one"], ["sums"]),
            helper.make_node("Unsqueeze", ["state", "axis"], ["before"]),
            helper.make_node("Add", ["sums", "before"], ["y"]),
            helper.make_node("Gather", ["y", "last"], ["next_state"], axis=1),
        ],
    )
    assert "promises the same bits" in refuted(entry)["rows and cuts"]
