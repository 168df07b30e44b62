"""An ONNX graph rewritten to the cell contract: one state row split and joined around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from cellar_proto.v1.manifest_pb2 import StatePart
from cellar_proto.v1.tensor_pb2 import DataType
from onnx import TensorProto, compose, helper

from cellar_models.own.graph import scanned
from cellar_models.own.source import Proposal, Size, Source, sizes_of
from cellar_models.own.why import ExportError, Why

_INPUTS: dict[int, DataType] = {
    TensorProto.FLOAT: DataType.FLOAT32,
    TensorProto.FLOAT16: DataType.FLOAT32,
    TensorProto.DOUBLE: DataType.FLOAT32,
    TensorProto.INT64: DataType.INT64,
    TensorProto.INT32: DataType.INT64,
    TensorProto.INT16: DataType.INT16,
    TensorProto.UINT8: DataType.UINT8,
}
_TYPES: dict[DataType, int] = {
    DataType.FLOAT32: TensorProto.FLOAT,
    DataType.INT64: TensorProto.INT64,
    DataType.INT16: TensorProto.INT16,
    DataType.UINT8: TensorProto.UINT8,
}


@dataclass
class Contract:
    """A source rewritten: (x [batch, time, ...], state [batch, S]) -> (y, next_state). is_scan: run step by step."""

    model: onnx.ModelProto
    parts: list[StatePart]
    dtype: DataType
    input_shape: tuple[int, ...]
    is_scan: bool


def rewrite(source: Source, x: str, y: str, proposal: Proposal, *, is_scan: bool) -> Contract:
    """Split, reshape and concatenate around the graph, and its axes opened. ExportError FIXED, AXES or
    EXAMPLE."""
    # the source's own names keep clear of the contract's
    model = compose.add_prefix(source.model, "source/", rename_functions=False)
    graph = model.graph
    inputs, outputs = source.inputs, source.outputs
    before: list[onnx.NodeProto] = []
    after: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, values: Sequence[int]) -> str:
        constants.append(helper.make_tensor(f"cellar_{name}", TensorProto.INT64, [len(values)], list(values)))
        return f"cellar_{name}"

    sizes = sizes_of(inputs[x])
    num_axes = len(proposal.axes)
    shape = tuple(size if isinstance(size, int) else -1 for size in sizes[num_axes:])
    if -1 in shape:
        raise ExportError(Why.AXES, f"{x} {sizes} must have numbers on all axes after batch and time")
    elem = inputs[x].type.tensor_type.elem_type
    if elem not in _INPUTS:
        raise ExportError(Why.EXAMPLE, f"{x} is of a type that no caller can send: {TensorProto.DataType.Name(elem)}")
    dtype = _INPUTS[elem]
    is_time_first = proposal.axes == ("time", "batch")
    turned = [1, 0, *range(2, len(sizes))]
    at = "x"
    if _TYPES[dtype] != elem:
        before.append(helper.make_node("Cast", [at], ["cellar_x"], to=elem))
        at = "cellar_x"
    before.append(
        helper.make_node("Transpose", [at], [f"source/{x}"], perm=turned)
        if is_time_first
        else helper.make_node("Identity", [at], [f"source/{x}"])
    )
    parts, offset, pieces = [], 0, []
    for k, (given, following) in enumerate(proposal.pairs.items()):
        axis, own = proposal.state_axes[given], sizes_of(inputs[given])
        rest = [int(size) for j, size in enumerate(own) if j != axis]  # type: ignore[arg-type]
        size = math.prod(rest)
        parts.append(StatePart(name=given, offset=offset, shape=rest or [1]))
        names = [
            constant(f"{word}{k}", [value]) for word, value in (("from", offset), ("to", offset + size), ("axis", 1))
        ]
        before.append(helper.make_node("Slice", ["state", *names], [f"cellar_row{k}"]))
        before.append(
            helper.make_node("Reshape", [f"cellar_row{k}", constant(f"shape{k}", [-1, *rest])], [f"cellar_first{k}"])
        )
        to_own = [*range(1, axis + 1), 0, *range(axis + 1, len(own))]
        kind = inputs[given].type.tensor_type.elem_type
        before.append(helper.make_node("Transpose", [f"cellar_first{k}"], [f"cellar_float{k}"], perm=to_own))
        before.append(helper.make_node("Cast", [f"cellar_float{k}"], [f"source/{given}"], to=kind))
        after.append(helper.make_node("Cast", [f"source/{following}"], [f"cellar_next{k}"], to=TensorProto.FLOAT))
        to_first = [axis, *(j for j in range(len(own)) if j != axis)]
        after.append(helper.make_node("Transpose", [f"cellar_next{k}"], [f"cellar_turned{k}"], perm=to_first))
        after.append(
            helper.make_node("Reshape", [f"cellar_turned{k}", constant(f"flat{k}", [-1, size])], [f"cellar_piece{k}"])
        )
        pieces.append(f"cellar_piece{k}")
        offset += size
    after.append(helper.make_node("Concat", pieces, ["next_state"], axis=1))
    out = sizes_of(outputs[y])
    after.append(helper.make_node("Cast", [f"source/{y}"], ["cellar_y"], to=TensorProto.FLOAT))
    has_time = num_axes == 2
    keeps_time = has_time and len(out) >= 2 and not (is_scan and len(out) < 3 and len(sizes) > 2)
    if is_scan and has_time and not keeps_time:  # one output for the steps of a run: a step's own
        after.append(helper.make_node("Unsqueeze", ["cellar_y", constant("one", [1])], ["y"]))
        step_shape = out[1:]
    elif is_time_first:
        after.append(helper.make_node("Transpose", ["cellar_y"], ["y"], perm=[1, 0, *range(2, len(out))]))
        step_shape = out[2:]
    else:
        after.append(helper.make_node("Identity", ["cellar_y"], ["y"]))
        step_shape = out[num_axes:]
    nodes = [*before, *graph.node, *after]
    lead: list[Size] = ["batch", *(["time" if not is_scan else 1] if has_time else [])]
    made = helper.make_graph(
        nodes,
        "network",
        [
            helper.make_tensor_value_info("x", _TYPES[dtype], [*lead, *shape]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, ["batch", offset]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [*lead, *step_shape]),
            helper.make_tensor_value_info("next_state", TensorProto.FLOAT, ["batch", offset]),
        ],
        [*graph.initializer, *constants],
    )
    result = helper.make_model(made, opset_imports=model.opset_import, ir_version=model.ir_version)
    result.functions.extend(model.functions)
    if is_scan:
        result = scanned(result, has_time=has_time)
    elif not has_time:
        raise ExportError(Why.FIXED, f"{x} {sizes} has no time axis")
    return Contract(result, parts, dtype, shape, is_scan)
