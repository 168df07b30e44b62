"""`cellar-models draw`: a picture from a manifest."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("torch", reason="the models extra is not installed")

from cellar_models.cli import main
from cellar_models.own.drawing import EQUATIONS, draw, layers_of
from cellar_proto.v1.manifest_pb2 import MANY_TO_MANY_ALIGNED, Manifest, StatePart

from tests.fakes.zoo import read_manifest

ZOO = Path(__file__).parents[2] / "models" / "zoo"
_SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(svg).iter(f"{_SVG}text")]


@pytest.mark.parametrize(
    ("name", "kind", "steps"),
    [("digits", "RNN", 1), ("forecast", "LSTM", 4), ("sentiment", "GRU", 4), ("describe", "LSTM", 4)],
)
def test_a_zoo_model_shows_its_cell_layers_and_steps(name: str, kind: str, steps: int) -> None:
    manifest = read_manifest(ZOO / name / "1")
    said = texts(draw(manifest))
    assert f"{name}/1" in said
    assert set(EQUATIONS[kind]) <= set(said)
    recurrent = [layer for layer in layers_of(manifest) if layer.kind]
    assert [layer.kind for layer in recurrent] == [kind]
    assert said.count(kind) == steps
    assert said.count("so far") == (3 if name == "sentiment" else 0)


def test_layers_and_sizes_come_from_the_parts() -> None:
    manifest = Manifest(name="<pump>", version=3, mode=MANY_TO_MANY_ALIGNED, architecture="LSTM; GRU", state_size=29)
    for part, offset, shape in (
        ("conv.inputs", 0, [4, 2]), ("lstm.0.h", 8, [6]), ("lstm.0.c", 14, [6]), ("gru.0.h", 20, [9])
    ):  # fmt: skip
        manifest.parts.append(StatePart(name=part, offset=offset, shape=shape))
    found = layers_of(manifest)
    assert [(layer.name, layer.kind, layer.sizes) for layer in found] == [
        ("conv", "", {"inputs": 8}), ("lstm.0", "LSTM", {"h": 6, "c": 6}), ("gru.0", "GRU", {"h": 9})
    ]  # fmt: skip
    said = texts(draw(manifest))
    assert "<pump>/3" in said
    assert {"inputs 8", "h 6, c 6", "h 9"} <= set(said)
    assert [said.count(word) for word in ("keeps", "LSTM", "GRU")] == [4, 4, 4]


def test_the_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "forecast.svg"
    assert main(["draw", str(ZOO / "forecast" / "1"), "--output", str(file)]) == 0
    assert ElementTree.parse(file).getroot().tag == f"{_SVG}svg"
    assert main(["draw", str(tmp_path / "nothing")]) == 1
    assert "manifest.json" in capsys.readouterr().err
