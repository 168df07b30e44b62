"""A tiny zoo of real ONNX graphs, and ways to break one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cellar_proto.v1.manifest_pb2 import MANY_TO_MANY_ALIGNED, ROWS, Manifest, StatePart, StepSpec
from cellar_proto.v1.tensor_pb2 import FLOAT32
from google.protobuf import json_format
from onnx import TensorProto, checker, helper, load


def write_counter(folder: Path, name: str = "counter", *, version: int = 1, time: object = "time") -> Path:
    """An entry whose y is the running sum of x: float32 [batch, time, 2], the state the last sum."""
    entry = folder / name / str(version)
    entry.mkdir(parents=True)
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("CumSum", ["x", "one"], ["sums"]),
        helper.make_node("Unsqueeze", ["state", "axis"], ["before"]),
        helper.make_node("Add", ["sums", "before"], ["y"]),
        helper.make_node("Gather", ["y", "last"], ["next_state"], axis=1),
    ]
    constants = [
        helper.make_tensor("one", TensorProto.INT64, [], [1]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("last", TensorProto.INT64, [], [-1]),
    ]
    graph = helper.make_graph(
        nodes,
        "counter",
        [value("x", TensorProto.FLOAT, ["batch", time, 2]), value("state", TensorProto.FLOAT, ["batch", 2])],
        [value("y", TensorProto.FLOAT, ["batch", time, 2]), value("next_state", TensorProto.FLOAT, ["batch", 2])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model)
    (entry / "model.onnx").write_bytes(model.SerializeToString())
    manifest = Manifest(
        format=1,
        name=name,
        version=version,
        mode=MANY_TO_MANY_ALIGNED,
        description="Running sums.",
        state_size=2,
        parts=[StatePart(name="sums", offset=0, shape=[2])],
        input=StepSpec(dtype=FLOAT32, shape=[2]),
        output=StepSpec(dtype=FLOAT32, shape=[2]),
        position_unit=ROWS,
        opset=18,
    )
    manifest.step.file = "model.onnx"
    manifest.step.input, manifest.step.state_input = "x", "state"
    manifest.step.output, manifest.step.state_output = "y", "next_state"
    manifest.sha256["model.onnx"] = hashlib.sha256((entry / "model.onnx").read_bytes()).hexdigest()
    write_manifest(entry, manifest)
    return entry


def add_int8(entry: Path) -> None:
    """Another graph that computes the same, named as the entry's int8 form."""
    model = load(entry / "model.onnx")
    model.doc_string = "int8"
    (entry / "model.int8.onnx").write_bytes(model.SerializeToString())
    manifest = read_manifest(entry)
    manifest.variants.add(precision="int8", step_file="model.int8.onnx").parity.min_rows = 2
    manifest.sha256["model.int8.onnx"] = hashlib.sha256((entry / "model.int8.onnx").read_bytes()).hexdigest()
    write_manifest(entry, manifest)


def read_manifest(entry: Path) -> Manifest:
    return json_format.Parse((entry / "manifest.json").read_text(), Manifest())


def write_manifest(entry: Path, manifest: Manifest) -> None:
    (entry / "manifest.json").write_text(json_format.MessageToJson(manifest, preserving_proto_field_name=True))
