"""A step over a state row, written as model.onnx and, where TorchScript can, model.pt; both axes open."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from cellar_models.own.forms import Form
from cellar_models.own.node import TRANSLATIONS
from cellar_models.own.stepper import Stepper
from cellar_models.own.why import ExportError, Why
from cellar_models.recurrent import OPSET


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own remarks: sizes and axes are tried on what they wrote."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Loop(nn.Module):
    """A step of one time step, traced, run over all of them: scripted, so that the number of steps stays open."""

    def __init__(self, step: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        made: list[Tensor] = []
        for t in range(x.shape[1]):
            y, state = self.step(x[:, t : t + 1], state)
            made.append(y)
        return torch.cat(made, 1), state


def write_torchscript(stepper: Stepper, path: Path) -> str:
    """model.pt; why not, where TorchScript cannot (and then no file)."""
    stepper.is_exporting = False
    x, state = _example(stepper)
    try:
        with _quiet():
            script = torch.jit.trace(stepper, (x, state), check_trace=False)
            if stepper.is_stepwise:
                script = torch.jit.script(_Loop(script).eval())
            # of other sizes than it was traced with
            x, state = stepper.subject.sample(5, 9, 3), stepper.start.repeat(5, 1)
            for found, expected in zip(script(x, state), stepper.over(x, state), strict=True):
                if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(expected.abs().max()))):
                    return "traced, it gives other outputs at other sizes"
            script.save(str(path))
        return ""
    except Exception as error:
        # TorchScript is a second form that nothing depends on; the reason goes on the card
        return " ".join(str(error).split())[:160]


def _example(stepper: Stepper) -> tuple[Tensor, Tensor]:
    return stepper.subject.sample(3, 1 if stepper.is_stepwise else 4, 2), stepper.start.repeat(3, 1)


def write_onnx(stepper: Stepper, path: Path) -> None:
    """model.onnx: (x [batch, time, ...], state [batch, S]) -> (y, next_state). ExportError EXPORTER."""
    x, state = _example(stepper)
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    axes = ({0: batch} if stepper.is_stepwise else {0: batch, 1: time}, {0: batch})
    stepper.prepare_export()
    try:
        with _quiet():
            program = torch.onnx.export(
                stepper, (x, state), dynamo=True, opset_version=OPSET, dynamic_shapes=axes,
                input_names=["x", "state"], output_names=["y", "next_state"],
                custom_translation_table=TRANSLATIONS, verbose=False, external_data=False,
            )  # fmt: skip
            assert program is not None
            program.save(str(path), external_data=False)
    except ExportError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = " ".join(str(cause).split())[:300]
        raise ExportError(Why.EXPORTER, f"{Why.EXPORTER.value}: {type(cause).__name__}: {text}") from error
    finally:
        stepper.is_exporting = False
    model = onnx.load(str(path))
    if stepper.form is Form.WHOLE:
        _pass_state(model)
    if stepper.is_stepwise:
        model = scanned(model)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _pass_state(model: onnx.ModelProto) -> None:
    """The state goes through as it is, also where the exporter dropped it."""
    graph = model.graph
    if "state" not in [place.name for place in graph.input]:
        graph.input.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, ["batch", 1]))
    outputs = [place.name for place in graph.output]
    if len(outputs) < 2 or outputs[1] != "next_state" or not any("next_state" in node.output for node in graph.node):
        del graph.output[1:]
        graph.output.append(helper.make_tensor_value_info("next_state", TensorProto.FLOAT, ["batch", 1]))
        graph.node.append(helper.make_node("Identity", ["state"], ["next_state"]))


def scanned(model: onnx.ModelProto, *, x: str = "x", y: str = "y", has_time: bool = True) -> onnx.ModelProto:
    """A graph of one step, run over the time axis by an ONNX Scan: x and y get an axis 1 of any size.

    x and y of the step are [batch, 1, ...], or [batch, ...] where `has_time` is False; its inputs and outputs are
    (x, state) and (y, next_state).
    """
    step = model.graph
    _rename_all(step, {x: "x_in_step", y: "y_in_step", "state": "state_in_step", "next_state": "next_state_in_step"})
    inputs, outputs = ({place.name: place for place in places} for places in (step.input, step.output))
    skip = 1 if has_time else 0

    def sizes(place: onnx.ValueInfoProto) -> list[int | str | None]:
        """Of one step, without batch and time."""
        return [dim.dim_value or dim.dim_param or None for dim in place.type.tensor_type.shape.dim][1 + skip :]

    def named(place: onnx.ValueInfoProto, name: str, axes: list[int | str | None]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, place.type.tensor_type.elem_type, axes)

    nodes, at_x, at_y = list(step.node), "x_in_step", "y_in_step"
    if has_time:
        at_x, at_y = "x_at_step", "y_at_step"
        first = helper.make_node("Unsqueeze", [at_x, "time_axis"], ["x_in_step"])
        nodes = [first, *nodes, helper.make_node("Squeeze", ["y_in_step", "time_axis"], [at_y])]
    state = inputs["state_in_step"]
    row: list[int | str | None] = ["batch", state.type.tensor_type.shape.dim[1].dim_value]
    from_x, to_y = inputs["x_in_step"], outputs["y_in_step"]
    # weights stay outside of the body, which sees them
    body = helper.make_graph(
        nodes,
        "step",
        [named(state, "state_in_step", row), named(from_x, at_x, ["batch", *sizes(from_x)])],
        [named(state, "next_state_in_step", row), named(to_y, at_y, ["batch", *sizes(to_y)])],
    )
    scan = helper.make_node(
        "Scan",
        ["state", "x"],
        ["next_state", "y"],
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[1],
    )
    graph = helper.make_graph(
        [scan],
        "network",
        [named(from_x, "x", ["batch", "time", *sizes(from_x)]), named(state, "state", row)],
        [named(to_y, "y", ["batch", "time", *sizes(to_y)]), named(state, "next_state", row)],
        [*step.initializer, helper.make_tensor("time_axis", TensorProto.INT64, [1], [1])],
    )
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    made.functions.extend(model.functions)
    return made


def _rename_all(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for place in (*graph.input, *graph.output):
        place.name = names.get(place.name, place.name)
    for node in graph.node:
        _rename(node, names)


def _rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Tensor names of a node, and in graphs inside of it."""
    for places in (node.input, node.output):
        for k, name in enumerate(places):
            places[k] = names.get(name, name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                _rename(inner, names)
            for place in graph.output:
                place.name = names.get(place.name, place.name)
