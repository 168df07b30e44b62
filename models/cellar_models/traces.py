"""Takes out of exported files what tells where they were made: nodes' stack traces, TorchScript's source lines."""

from __future__ import annotations

import zipfile
from pathlib import Path

import onnx


def clear_onnx(model: onnx.ModelProto) -> None:
    """Takes the metadata of its nodes and values out of a graph; what it computes stays."""
    graphs: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        for value in [*graph.value_info, *getattr(graph, "input", []), *getattr(graph, "output", [])]:
            if hasattr(value, "metadata_props"):
                del value.metadata_props[:]
        del graph.metadata_props[:]
    del model.metadata_props[:]


def clear_torchscript(path: Path) -> None:
    """A TorchScript file, deflated, without the places in source files that its operations came from."""
    with zipfile.ZipFile(path) as file:
        kept = [(each, file.read(each)) for each in file.infolist() if not each.filename.endswith(".debug_pkl")]
    with zipfile.ZipFile(path, "w") as file:
        for each, content in kept:
            # of a fixed date, so that the same network gives the same bytes
            file.writestr(zipfile.ZipInfo(each.filename), content, zipfile.ZIP_DEFLATED, compresslevel=9)
