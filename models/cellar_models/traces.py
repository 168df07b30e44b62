"""Takes out of exported files what tells where they were made: nodes' stack traces, TorchScript's source lines."""

from __future__ import annotations

import zipfile
from pathlib import Path

import onnx


def clear_onnx(path: Path) -> None:
    """An ONNX file without metadata of its nodes and values; what it computes stays."""
    model = onnx.load(path)
    graphs = [model.graph, *model.functions]
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
    onnx.save(model, path)


def clear_torchscript(path: Path) -> None:
    """A TorchScript file without the places in source files that its operations came from."""
    with zipfile.ZipFile(path) as file:
        kept = [(each, file.read(each)) for each in file.infolist() if not each.filename.endswith(".debug_pkl")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for each, content in kept:
            file.writestr(zipfile.ZipInfo(each.filename), content)
