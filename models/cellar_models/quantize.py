"""From a float32 graph to an int8 one whose answers depend on nobody else in the run.

ONNX Runtime's own DynamicQuantizeLSTM takes one activation scale over all rows of a run, so a batch-mate's outlier
moves every answer. Here each scale is a constant of the graph: what goes into a cell is cut to bounds found beforehand,
as h is, which the cell's equations keep within -1..1. Products of whole numbers are exact in any order, so rows and
cuts do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from cellar_models.halves import pack, unpack
from cellar_models.int8_layer import DOMAIN, MAX_ACTIVATION, Int8Layer

# ONNX's blocks of gates, by kind.
_GATES = {"LSTM": "iofc", "GRU": "zrh", "RNN": "h"}
_ACTIVATIONS = {"LSTM": [b"Sigmoid", b"Tanh", b"Tanh"], "GRU": [b"Sigmoid", b"Tanh"], "RNN": [b"Tanh"]}
_PLAIN = {"hidden_size", "direction", "activations", "linear_before_reset", "input_forget", "layout"}
# What goes in may be so much more than what was seen before it is cut; a feature that was hardly seen gets a tenth of
# the largest one's room.
MARGIN = 1.25
LEAST = 0.1
# Numbers in a table from which on it is kept in 8 bits.
TABLE_SIZE = 1 << 16


class QuantizeError(ValueError):
    """A graph has no recurrent layer that can be made int8."""


@dataclass(frozen=True)
class Quantized:
    """An int8 graph; bounds: [input] of what goes into each recurrent layer, by its node: beyond them it is cut."""

    model: onnx.ModelProto
    bounds: dict[str, np.ndarray]


def quantize(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Quantized:
    """The graph with every recurrent layer and large embedding in int8 and the rest as it was; QuantizeError where
    there is no such layer.

    model: forward RNN, LSTM or GRU nodes with weights in the graph; feeds: inputs as they come, from which the bounds
    are found. Weights take a scale for each output of a gate.
    """
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    unpack(whole)
    model = whole
    found = [(node, _weights(model.graph, node)) for node in model.graph.node]
    layers = [node for node, weights in found if weights is not None]
    if not layers:
        raise QuantizeError("the graph has no recurrent layer that int8 covers")
    bounds = _bounds(model, [name for node in layers for name in (node.input[0], node.output[0]) if name], feeds)
    nodes: list[onnx.NodeProto] = []
    initializers = {each.name: each for each in model.graph.initializer}
    for node, weights in found:
        if weights is None and _is_row_gather(node) and _is_table(initializers.get(node.input[0])):
            made, constants = _looked_up(node, numpy_helper.to_array(initializers[node.input[0]]), len(nodes))
            nodes += made
            initializers |= {each.name: each for each in constants}
        elif weights is None:
            nodes.append(node)
        else:
            largest_h = float(bounds[node.output[0]].max()) if node.output[0] else 1.0
            layer = Int8Layer(node, len(nodes), bounds[node.input[0]], min(1.0, largest_h))
            nodes += layer.nodes(*weights)
            initializers |= {each.name: each for each in layer.initializers}
    used = {name for node in nodes for name in node.input} | {each.name for each in model.graph.output}
    graph = helper.make_graph(
        nodes,
        model.graph.name,
        model.graph.input,
        model.graph.output,
        [each for name, each in initializers.items() if name in used or name.startswith("int8.")],
    )
    opsets = [each for each in model.opset_import if each.domain != DOMAIN] + [helper.make_opsetid(DOMAIN, 1)]
    quantized = helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    pack(quantized)
    onnx.checker.check_model(quantized)
    return Quantized(quantized, {node.name or node.output[0]: bounds[node.input[0]] for node in layers})


def _is_row_gather(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gather" and not any(each.name == "axis" and each.i for each in node.attribute)


def _is_table(tensor: onnx.TensorProto | None) -> bool:
    """A large table of vectors, which takes a quarter of its room in 8 bits."""
    return (
        tensor is not None
        and tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and tensor.dims[0] * tensor.dims[1] >= TABLE_SIZE
    )


def _looked_up(
    node: onnx.NodeProto, table: np.ndarray, number: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """A look-up in a table of 8-bit whole numbers, a scale a feature, in place of one in `table` [n, features]."""
    p = f"int8.{number}."
    scale = np.maximum(np.abs(table).max(axis=0), 1e-12) / MAX_ACTIVATION
    constants = [
        numpy_helper.from_array(np.rint(table / scale).astype(np.int8), p + "table"),
        numpy_helper.from_array(scale.astype(np.float32), p + "table_scale"),
    ]
    made = [
        helper.make_node("Gather", [p + "table", node.input[1]], [p + "found"], axis=0),
        helper.make_node("Cast", [p + "found"], [p + "as_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [p + "as_float", p + "table_scale"], list(node.output)),
    ]
    return made, constants


def _weights(graph: onnx.GraphProto, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """w [gates, hidden, input], r [gates, hidden, hidden], b [2, gates, hidden]; None where it is left alone."""
    if node.op_type not in _GATES:
        return None
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    constants = {each.name: each for each in graph.initializer}
    inputs = [*node.input, *[""] * 8][:8]
    plain = _ACTIVATIONS[node.op_type]
    is_plain = (
        set(attributes) <= _PLAIN
        and attributes.get("direction", b"forward") == b"forward"
        # an exporter may name the other direction's too
        and attributes.get("activations", plain)[: len(plain)] == plain
        and not attributes.get("input_forget")
        and not attributes.get("layout")
        and (node.op_type != "GRU" or attributes.get("linear_before_reset") == 1)
        and not inputs[4]
        and inputs[5]
        and not inputs[7]
        and all(name in constants for name in inputs[1:4])
    )
    if not is_plain:
        return None
    w, r, b = (numpy_helper.to_array(constants[name])[0] for name in inputs[1:4])
    gates = len(_GATES[node.op_type])
    hidden = r.shape[1]
    return w.reshape(gates, hidden, -1), r.reshape(gates, hidden, hidden), b.reshape(2, gates, hidden)


def _bounds(model: onnx.ModelProto, names: list[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The largest size of each feature of some tensors on `feeds`, and a quarter: float32 [input] by name."""
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    have = {each.name for each in [*seen.graph.output, *seen.graph.input]}
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in have)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(seen.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [name for name in dict.fromkeys(names) if name not in feeds]
    values = {**feeds, **dict(zip(wanted, session.run(wanted, dict(feeds)), strict=True))}
    largest = {name: MARGIN * np.abs(values[name]).reshape(-1, values[name].shape[-1]).max(axis=0) for name in names}
    return {
        name: np.maximum(each, max(LEAST * float(each.max()), 1e-6)).astype(np.float32)
        for name, each in largest.items()
    }
