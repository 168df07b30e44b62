"""A model folder is data, never code, and no size in it is believed before it is checked."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cellar_proto.v1.manifest_pb2 import Manifest
from cellar_server import zoo
from cellar_server.config import Config
from cellar_server.errors import CellarError
from cellar_server.front.registry import Registry
from cellar_server.loader import Loader
from cellar_server.runtime.graph_file import check_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.fakes.bench import reason_of
from tests.fakes.zoo import read_manifest, write_counter, write_manifest


def reason_and_text(entry: Path) -> tuple[str, str]:
    """Why a folder is not served."""
    with pytest.raises(CellarError) as caught:
        zoo.load(zoo.Entry(entry.parent.name, int(entry.name), entry))
    return reason_of(caught.value), caught.value.message


def outcome(entry: Path) -> str:
    """Why a folder is not served; "" where it is."""
    try:
        zoo.load(zoo.Entry("counter", 1, entry))
    except CellarError as error:
        return reason_of(error)
    return ""


def changed(change: Callable[[Manifest], object]) -> Callable[[Path], None]:
    def write(entry: Path) -> None:
        manifest = read_manifest(entry)
        change(manifest)
        write_manifest(entry, manifest)

    return write


def linked(entry: Path) -> None:
    (entry / "model.onnx").rename(entry.parent / "elsewhere.onnx")
    (entry / "model.onnx").symlink_to(entry.parent / "elsewhere.onnx")


def manifest_linked(entry: Path) -> None:
    (entry / "manifest.json").rename(entry.parent / "elsewhere.json")
    (entry / "manifest.json").symlink_to(entry.parent / "elsewhere.json")


def huge_parts(manifest: Manifest) -> None:
    manifest.state_size = 2**31
    manifest.parts[0].shape[:] = [2**31]


def renamed(name: str) -> Callable[[Path], None]:
    def change(manifest: Manifest) -> None:
        manifest.step.file = name
        manifest.sha256[name] = manifest.sha256["model.onnx"]

    return changed(change)


def sparse(name: str, size: int) -> Callable[[Path], None]:
    """A file of a size, which takes no disk."""

    def write(entry: Path) -> None:
        with (entry / name).open("wb") as file:
            file.truncate(size)
        manifest = read_manifest(entry)
        manifest.sha256[name] = "0" * 64
        if name == "tokenizer.json":
            manifest.text.tokenizer_file = name
        write_manifest(entry, manifest)

    return write


def with_start(values: np.ndarray) -> Callable[[Path], None]:
    def write(entry: Path) -> None:
        data = values.astype("<f4").tobytes()
        (entry / "start.f32").write_bytes(data)
        manifest = read_manifest(entry)
        manifest.start_file = "start.f32"
        manifest.sha256["start.f32"] = hashlib.sha256(data).hexdigest()
        write_manifest(entry, manifest)

    return write


def nested(entry: Path) -> None:
    (entry / "manifest.json").write_text('{"input":' * 5000 + "1" + "}" * 5000)


HOSTILE: list[tuple[str, Callable[[Path], None], str]] = [
    ("parent", renamed("../model.onnx"), "not a plain file name"),
    ("absolute", renamed("/etc/passwd"), "not a plain file name"),
    ("backslash", renamed("..\\model.onnx"), "not a plain file name"),
    ("nul", renamed("model\0.onnx"), "not a plain file name"),
    ("folder", renamed(".."), "not a plain file name"),
    ("symlink", linked, "not a plain file name"),
    ("manifest symlink", manifest_linked, "no plain file"),
    ("manifest size", lambda entry: os.truncate(entry / "manifest.json", 5 << 20), "manifest.json is over"),
    ("manifest depth", nested, ""),
    ("file size", sparse("big.bin", (1 << 30) + 1), "big.bin is over"),
    ("codec size", sparse("tokenizer.json", (64 << 20) + 1), "tokenizer.json is over"),
    ("state", changed(huge_parts), "state_size is 2147483648"),
    ("output", changed(lambda m: m.output.shape.extend([2**31, 2**31])), "output.shape is"),
    ("input", changed(lambda m: m.input.shape.extend([2**16, 2**16])), "input.shape is"),
    ("no output", changed(lambda m: m.output.shape.append(0)), "output.shape is"),
    ("axes", changed(lambda m: m.input.shape.extend([1] * 20)), "input.shape is"),
    ("twins", changed(lambda m: setattr(m.parity, "min_rows", 2**31)), "min_rows"),
    (
        "sampling",
        changed(lambda m: setattr(m.generation, "default_temperature", float("nan"))),
        "temperature is from 0",
    ),
    ("part", changed(lambda m: m.parts[0].shape.extend([2**32 - 1] * 30)), "hold"),
    ("start size", with_start(np.zeros(5)), "start.f32 holds 5"),
    ("start NaN", with_start(np.array([1, np.nan])), "NaN"),
]


@pytest.mark.parametrize(("breaking", "message"), [each[1:] for each in HOSTILE], ids=[each[0] for each in HOSTILE])
def test_a_hostile_folder_is_broken_and_takes_no_memory(
    tmp_path: Path, breaking: Callable[[Path], None], message: str
) -> None:
    entry = write_counter(tmp_path)
    breaking(entry)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reason, text = reason_and_text(entry)
    assert reason == "MODEL_BROKEN"
    assert message in text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


# -- graphs ----------------------------------------------------------------------------------------------------------


def external(location: str) -> TensorProto:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def in_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(tensor)


def in_constant(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["w"], value=tensor))


def in_branch(model: onnx.ModelProto, tensor: TensorProto) -> None:
    branch = helper.make_graph([helper.make_node("Constant", [], ["b"], value=tensor)], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch))


def in_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor)]
    model.functions.append(helper.make_function("own", "f", [], ["w"], nodes, [helper.make_opsetid("", 18)]))


def in_sparse(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)


@pytest.mark.parametrize("location", ["w.bin", "../w.bin", "/etc/passwd"])
@pytest.mark.parametrize("place", [in_initializer, in_constant, in_branch, in_function, in_sparse])
def test_a_graph_cannot_name_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Callable[..., None], location: str
) -> None:
    entry = write_counter(tmp_path)
    np.ones(2, np.float32).tofile(entry / "w.bin")
    monkeypatch.chdir(entry)
    model = onnx.load(entry / "model.onnx", load_external_data=False)
    place(model, external(location))
    data = model.SerializeToString()
    (entry / "model.onnx").write_bytes(data)
    changed(lambda m: m.sha256.update({"model.onnx": hashlib.sha256(data).hexdigest()}))(entry)
    reason, text = reason_and_text(entry)
    assert reason == "MODEL_BROKEN"
    assert "another file" in text


def test_every_field_that_leads_to_a_tensor_is_walked() -> None:
    """The field numbers are those of the installed onnx, and none that leads to a TensorProto is missing."""
    from cellar_server.runtime import graph_file

    names = {
        graph_file._MODEL: "ModelProto",
        graph_file._GRAPH: "GraphProto",
        graph_file._NODE: "NodeProto",
        graph_file._ATTRIBUTE: "AttributeProto",
        graph_file._TENSOR: "TensorProto",
        graph_file._SPARSE: "SparseTensorProto",
        graph_file._FUNCTION: "FunctionProto",
        graph_file._TRAINING: "TrainingInfoProto",
    }
    kinds = {name: kind for kind, name in names.items()}
    for kind, name in names.items():
        fields = getattr(onnx, name).DESCRIPTOR.fields
        leading = {
            f.number: kinds[f.message_type.name] for f in fields if f.message_type and f.message_type.name in kinds
        }
        assert graph_file._FIELDS[kind] == leading, name
    assert onnx.TensorProto.DESCRIPTOR.fields_by_name["external_data"].number == graph_file._EXTERNAL_DATA
    assert onnx.TensorProto.DESCRIPTOR.fields_by_name["data_location"].number == graph_file._DATA_LOCATION


@given(st.binary(max_size=300))
def test_bytes_that_are_no_graph_are_refused_or_hold_no_file(data: bytes) -> None:
    try:
        check_graph(data)
    except ValueError:
        return
    # what the walk accepts, protobuf reads too, or refuses for its own reasons
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception:
        return
    assert b"external_data" not in str(model).encode()


@given(st.data())
@settings(max_examples=150)
def test_a_changed_graph_is_served_or_broken(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("graph")
    entry = write_counter(folder)
    graph = bytearray((entry / "model.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        graph[data.draw(st.integers(0, len(graph) - 1))] = data.draw(st.integers(0, 255))
    graph = graph[: data.draw(st.integers(0, len(graph)))] if data.draw(st.booleans()) else graph
    (entry / "model.onnx").write_bytes(graph)
    changed(lambda m: m.sha256.update({"model.onnx": hashlib.sha256(graph).hexdigest()}))(entry)
    assert outcome(entry) in ("", "MODEL_BROKEN")


KEYS = [field.name for field in Manifest.DESCRIPTOR.fields]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**64) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=4))
@settings(max_examples=150)
def test_a_changed_manifest_is_served_or_broken(tmp_path_factory: pytest.TempPathFactory, changes: dict) -> None:
    entry = write_counter(tmp_path_factory.mktemp("manifest"))
    manifest = json.loads((entry / "manifest.json").read_text())
    (entry / "manifest.json").write_text(json.dumps(manifest | changes))
    assert outcome(entry) in ("", "MODEL_BROKEN")


def test_a_model_whose_sessions_do_not_fit_is_broken_and_the_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("counter", "other"):
        write_counter(tmp_path, name)

    def reserve(rows: int, columns: int, dtype: type = np.float32) -> np.ndarray:
        raise OSError("no memory")

    registry = Registry(Config(models=tmp_path, max_sessions=64))
    loader = Loader(registry, lambda engine: None)
    with monkeypatch.context() as patched:
        patched.setattr("cellar_server.sessions.table.reserve", reserve)
        loader._open(zoo.find(tmp_path)[0])
    assert reason_of(registry.broken["counter", 1]) == "MODEL_BROKEN"
    assert loader._open(zoo.find(tmp_path)[1]) is not None
    # and its number is free again: it may be loaded where there is memory
    assert asyncio.run(loader_of(registry).load("counter")) == [1]


def loader_of(registry: Registry) -> Loader:
    return Loader(registry, lambda engine: None)
