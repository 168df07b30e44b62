"""A recurrent layer in 8-bit whole numbers: the nodes that stand in the place of one ONNX RNN, LSTM or GRU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DOMAIN = "com.microsoft"
# 7 bits of weight: CPUs without VNNI cut a sum of two products at 16 bits, which 8-bit weights could reach.
MAX_WEIGHT = 63
MAX_ACTIVATION = 127


class Int8Layer:
    """One recurrent node as a Scan over time whose body makes its products in whole numbers."""

    def __init__(self, node: onnx.NodeProto, number: int, bound: np.ndarray, h_bound: float) -> None:
        self.node, self.bound, self.h_bound = node, bound, h_bound
        self.prefix = f"int8.{number}."
        self.initializers: list[onnx.TensorProto] = []
        self.body: list[onnx.NodeProto] = []

    def nodes(self, w: np.ndarray, r: np.ndarray, b: np.ndarray) -> list[onnx.NodeProto]:
        """What stands in the node's place."""
        kind, p = self.node.op_type, self.prefix
        self.hidden, inputs = r.shape[1], w.shape[2]
        states = ["h", "c"] if kind == "LSTM" else ["h"]
        self._constant("x_room", 1 / self.bound)
        self._constant("x_scale", np.float32(1 / MAX_ACTIVATION))
        self._constant("h_scale", np.float32(self.h_bound / MAX_ACTIVATION))
        self._constant("one", np.float32(1))
        self._constant("x_zero", np.uint8(128))
        self._constant("w_zero", np.int8(0))
        self._constant("first", np.array([0], np.int64))
        self._op("QuantizeLinear", [p + "h", p + "h_scale", p + "x_zero"], "h_whole")
        # the scales go into the weights, so that input and h can be one row of one product
        x_part = w.transpose(0, 2, 1) * (self.bound / MAX_ACTIVATION)[:, None]
        h_part = r.transpose(0, 2, 1) * np.float32(self.h_bound / MAX_ACTIVATION)
        both = np.concatenate([x_part, h_part], axis=1)
        self._op("Concat", [p + "x_step", p + "h_whole"], "both", axis=1)
        getattr(self, f"_{kind.lower()}")(both, x_part, h_part, b)
        self._op("Identity", [p + "h_next"], "y_step")

        def value(name: str, size: int, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(p + name, dtype, [p + "batch", size])

        body = helper.make_graph(
            self.body,
            p + "step",
            [*(value(each, self.hidden) for each in states), value("x_step", inputs, TensorProto.UINT8)],
            [*(value(each, self.hidden) for each in (f"{s}_next" for s in states)), value("y_step", self.hidden)],
        )
        starts = self.node.input[5 : 5 + len(states)]
        outputs = [*self.node.output, "", "", ""][:3]
        made = [
            helper.make_node("Mul", [self.node.input[0], p + "x_room"], [p + "x_scaled"]),
            helper.make_node("QuantizeLinear", [p + "x_scaled", p + "x_scale", p + "x_zero"], [p + "x"]),
        ]
        made += [
            helper.make_node("Squeeze", [start, p + "first"], [f"{p}{s}_start"])
            for s, start in zip(states, starts, strict=True)
        ]
        ends = [f"{p}{s}_end" for s in states]
        made.append(
            helper.make_node(
                "Scan",
                [*(f"{p}{s}_start" for s in states), p + "x"],
                [*ends, p + "y"],
                body=body,
                num_scan_inputs=1,
            )
        )
        if outputs[0]:
            self._constant("second", np.array([1], np.int64))
            made.append(helper.make_node("Unsqueeze", [p + "y", p + "second"], [outputs[0]]))
        made += [
            helper.make_node("Unsqueeze", [end, p + "first"], [name])
            for end, name in zip(ends, outputs[1:], strict=False)
            if name
        ]
        return made

    def _lstm(self, both: np.ndarray, x_part: np.ndarray, h_part: np.ndarray, b: np.ndarray) -> None:
        p = self.prefix
        for gate, letter in enumerate("iofc"):
            self._product(letter, "both", both[gate], b[:, gate].sum(0))
            self._op("Tanh" if letter == "c" else "Sigmoid", [p + letter + "_sum"], letter + "_gate")
        self._op("Mul", [p + "i_gate", p + "c_gate"], "new")
        self._op("Mul", [p + "f_gate", p + "c"], "kept")
        self._op("Add", [p + "kept", p + "new"], "c_next")
        self._op("Tanh", [p + "c_next"], "shown")
        self._op("Mul", [p + "o_gate", p + "shown"], "h_next")

    def _gru(self, both: np.ndarray, x_part: np.ndarray, h_part: np.ndarray, b: np.ndarray) -> None:
        p = self.prefix
        for gate, letter in enumerate("zr"):
            self._product(letter, "both", both[gate], b[:, gate].sum(0))
            self._op("Sigmoid", [p + letter + "_sum"], letter + "_gate")
        self._product("n_x", "x_step", x_part[2], b[0, 2])
        self._product("n_h", "h_whole", h_part[2], b[1, 2])
        self._op("Mul", [p + "r_gate", p + "n_h_sum"], "reset")
        self._op("Add", [p + "n_x_sum", p + "reset"], "n_sum")
        self._op("Tanh", [p + "n_sum"], "n_gate")
        # (1 - z) n + z h = n + z (h - n)
        self._op("Sub", [p + "h", p + "n_gate"], "way")
        self._op("Mul", [p + "z_gate", p + "way"], "gone")
        self._op("Add", [p + "n_gate", p + "gone"], "h_next")

    def _rnn(self, both: np.ndarray, x_part: np.ndarray, h_part: np.ndarray, b: np.ndarray) -> None:
        self._product("n", "both", both[0], b[:, 0].sum(0))
        self._op("Tanh", [self.prefix + "n_sum"], "h_next")

    def _product(self, name: str, left: str, weights: np.ndarray, bias: np.ndarray) -> None:
        """`left` [batch, k], whole numbers, times float weights [k, hidden], plus bias: float32 `name`_sum."""
        p = self.prefix
        scale = np.maximum(np.abs(weights).max(axis=0), 1e-12) / MAX_WEIGHT
        self._constant(name + "_w", np.rint(weights / scale).astype(np.int8))
        self._constant(name + "_scale", scale.astype(np.float32))
        self._constant(name + "_b", bias.astype(np.float32))
        inputs = [left, name + "_w", "one", name + "_scale", "x_zero", "w_zero", name + "_b"]
        self._op("MatMulIntegerToFloat", [p + each for each in inputs], name + "_sum", domain=DOMAIN)

    def _op(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self.body.append(helper.make_node(kind, inputs, [self.prefix + output], **attributes))

    def _constant(self, name: str, value: np.ndarray | np.generic) -> None:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), self.prefix + name))
