"""Weights at half precision: rounded once, stored in two bytes a number, computed with in float32.

Rounding is the only step that changes a number. Storing is exact: a tensor is stored in halves only where each of its
numbers is one, and ONNX Runtime folds the cast back when it loads the graph, so that what runs is the float32 graph.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

# Numbers in a tensor from which on it is stored in halves.
LEAST = 1024
SUFFIX = ".half"


@torch.no_grad()
def round_weights(network: nn.Module) -> None:
    """Rounds a network's matrices of parameters, in place, to the nearest numbers of float16; they stay float32.

    Vectors (biases), buffers (counts, tables, filters) and what float16 cannot hold stay as they are.
    """
    for weight in network.parameters():
        if weight.dim() >= 2 and weight.dtype == torch.float32:
            rounded = weight.half().float()
            if rounded.isfinite().all():
                weight.copy_(rounded)


def pack(model: onnx.ModelProto) -> None:
    """Stores a graph's large float32 tensors whose numbers are all float16's in halves, cast to float32 where the graph
    begins. The others stay."""
    graph, casts = model.graph, []
    inputs = {place.name for place in graph.input}
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) < LEAST or tensor.name in inputs:
            continue
        exact = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = exact.astype(np.float16)
        if np.array_equal(halves, exact):
            casts.append(helper.make_node("Cast", [tensor.name + SUFFIX], [tensor.name], to=TensorProto.FLOAT))
            tensor.CopyFrom(numpy_helper.from_array(halves, tensor.name + SUFFIX))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def pack_file(path: Path) -> None:
    """`pack` of a graph in a file."""
    model = onnx.load(path)
    pack(model)
    onnx.save(model, path)


def unpack(model: onnx.ModelProto) -> None:
    """Undoes `pack`: a float16 tensor that is only cast to float32 is a float32 tensor of the cast's name."""
    graph = model.graph
    halves = {each.name: each for each in graph.initializer if each.data_type == TensorProto.FLOAT16}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in halves]
    for node in casts:
        tensor = halves[node.input[0]]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), node.output[0]))
        graph.node.remove(node)
