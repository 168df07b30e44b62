"""The benchmark's model: LSTM 2 x 256, 64 inputs, 64 outputs, float32, random weights; as zoo entry and as ceiling."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from cellar_proto.v1.manifest_pb2 import MANY_TO_MANY_ALIGNED, ROWS, Manifest, StatePart, StepSpec
from cellar_proto.v1.tensor_pb2 import FLOAT32
from google.protobuf import json_format
from onnx import TensorProto, helper, numpy_helper

WIDTH, HIDDEN, STATE_SIZE, OPSET = 64, 256, 1024, 18
NAME = "bench-lstm"
PARTS = ["h0", "c0", "h1", "c1"]


def _weights(hidden: int) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.uniform(-0.0625, 0.0625, shape).astype(np.float32), name)

    tensors = [tensor("head_w", hidden, WIDTH), tensor("head_b", WIDTH)]
    for layer, inputs in enumerate((WIDTH, hidden)):
        tensors += [
            tensor(f"w{layer}", 1, 4 * hidden, inputs),
            tensor(f"r{layer}", 1, 4 * hidden, hidden),
            tensor(f"b{layer}", 1, 8 * hidden),
        ]
    return [*tensors, numpy_helper.from_array(np.array([1]), "one"), numpy_helper.from_array(np.array([0]), "zero")]


def _body(hidden: int, lengths: str = "") -> list[onnx.NodeProto]:
    """xt [time, batch, 64], h and c [1, batch, hidden] -> yt [time, batch, 64], next h and c.
    lengths: the input that is sequence_lens."""
    nodes, x = [], "xt"
    for k in (0, 1):
        inputs = [x, f"w{k}", f"r{k}", f"b{k}", lengths, f"h{k}", f"c{k}"]
        nodes += [
            helper.make_node("LSTM", inputs, [f"y{k}", f"next_h{k}", f"next_c{k}"], hidden_size=hidden),
            helper.make_node("Squeeze", [f"y{k}", "one"], [f"x{k + 1}"]),
        ]
        x = f"x{k + 1}"
    return [
        *nodes,
        helper.make_node("MatMul", ["x2", "head_w"], ["product"]),
        helper.make_node("Add", ["product", "head_b"], ["yt"]),
    ]


def _save(nodes: list, inputs: dict[str, list], outputs: dict[str, list], path: Path, hidden: int = HIDDEN) -> None:
    used = {name for node in nodes for name in node.input}

    def values(shapes: dict[str, list]) -> list[onnx.ValueInfoProto]:
        kinds = {"lengths": TensorProto.INT32}
        return [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in shapes.items()
        ]

    graph = helper.make_graph(
        nodes, NAME, values(inputs), values(outputs), [w for w in _weights(hidden) if w.name in used]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_ceiling(path: Path, *, is_padded: bool = False) -> None:
    """The bare network: time first, plain h and c inputs; where padded, with `lengths` int32 [batch] beside them."""
    states = {name: [1, "batch", HIDDEN] for name in PARTS}
    nexts = {f"next_{name}": [1, "batch", HIDDEN] for name in PARTS}
    lengths = {"lengths": ["batch"]} if is_padded else {}
    inputs = {"xt": ["time", "batch", WIDTH], **lengths, **states}
    body = _body(HIDDEN, "lengths" if is_padded else "")
    _save(body, inputs, {"yt": ["time", "batch", WIDTH], **nexts}, path)


def write_entry(zoo: Path, hidden: int = HIDDEN, *, has_int8: bool = False) -> Path:
    """The same network, or one of another width, as a zoo folder, its state one row; the folder. has_int8: beside
    float32, which needs cellar_models."""
    folder = zoo / NAME / "1"
    folder.mkdir(parents=True)
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("Split", ["state"], [f"flat_{p}" for p in PARTS], axis=1, num_outputs=4),
        *(helper.make_node("Unsqueeze", [f"flat_{p}", "zero"], [p]) for p in PARTS),
        *_body(hidden),
        *(helper.make_node("Squeeze", [f"next_{p}", "zero"], [f"row_{p}"]) for p in PARTS),
        helper.make_node("Concat", [f"row_{p}" for p in PARTS], ["next_state"], axis=1),
        helper.make_node("Transpose", ["yt"], ["y"], perm=[1, 0, 2]),
    ]
    state = ["batch", 4 * hidden]
    _save(
        nodes,
        {"x": ["batch", "time", WIDTH], "state": state},
        {"y": ["batch", "time", WIDTH], "next_state": state},
        folder / "model.onnx",
        hidden,
    )
    manifest = Manifest(format=1, name=NAME, version=1, description="Random weights, to measure with.")
    manifest.mode, manifest.position_unit, manifest.state_size, manifest.opset = (
        MANY_TO_MANY_ALIGNED,
        ROWS,
        4 * hidden,
        OPSET,
    )
    manifest.step.file = "model.onnx"
    manifest.step.input, manifest.step.state_input = "x", "state"
    manifest.step.output, manifest.step.state_output = "y", "next_state"
    manifest.parts.extend(StatePart(name=p, offset=hidden * i, shape=[hidden]) for i, p in enumerate(PARTS))
    manifest.input.CopyFrom(StepSpec(dtype=FLOAT32, shape=[WIDTH]))
    manifest.output.CopyFrom(StepSpec(dtype=FLOAT32, shape=[WIDTH]))
    manifest.architecture = f"LSTM, 2 layers of {hidden}"
    manifest.parity.tolerance = 1e-5
    if has_int8:
        from cellar_models.quantize import quantize

        rng = np.random.default_rng(1)
        feeds = {
            "x": rng.standard_normal((64, 64, WIDTH), np.float32),
            "state": rng.uniform(-0.5, 0.5, (64, 4 * hidden)).astype(np.float32),
        }
        onnx.save(quantize(onnx.load(folder / "model.onnx"), feeds).model, folder / "model.int8.onnx")
        manifest.variants.add(precision="int8", step_file="model.int8.onnx")
        manifest.sha256["model.int8.onnx"] = hashlib.sha256((folder / "model.int8.onnx").read_bytes()).hexdigest()
    manifest.sha256["model.onnx"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json_format.MessageToJson(manifest, preserving_proto_field_name=True))
    return folder
