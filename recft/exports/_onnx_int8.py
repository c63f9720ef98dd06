"""A float32 graph made int8: weights of one byte, activations in two digits, found row by row as they come.

    w[k, n] ~ s[n] * q[k, n]                                 q in -127 .. 127, s one scale an output column
    x[t, k] ~ r[t] * (a[t, k] / 63 + b[t, k] / (63 * 126))   a, b in -63 .. 63, r[t] = max |x[t, :]|
    y[t, n] = r[t] * s[n] * (sum_k a q / 63 + sum_k b q / (63 * 126))

The usual dynamic quantization has one scale for a whole batch and one digit. On MiniLM that kept 90% of the first ten,
and a text's scores moved by 2e-2 with the texts beside it: too little. With a scale for every row nothing depends on
the neighbours, and the second digit leaves only the rounding of the weights. A digit has seven bits because a CPU
without VNNI adds two products in 16: 2 * 127 * 127 still fits.

A few columns, as of a label's head, stay float32: they weigh nothing and decide everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.exports._onnx_graph import constant, drop_unused

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["quantize"]

DOMAIN = "com.microsoft"
"""Of `MatMulIntegerToFloat`: an integer product that leaves as float32, without a pass of its own for each scale."""

SMALLEST = 16
"""Matrices with fewer rows or columns stay float32."""

DIGIT = 63.0
"""The largest value of a digit; it is stored with this much and one more added, as an unsigned byte."""


def quantize(model: ir.Model) -> dict[str, Any]:
    """Makes the graph int8, in place, one matrix at a time; what was done, for `graph.json`."""
    graph = model.graph
    work = _Work(graph)
    found = {"matrices": 0, "tables": 0}
    for node in list(graph):
        if node.op_type == "Gather" and work.table(node):
            found["tables"] += 1
        elif node.op_type in ("MatMul", "Gemm") and work.matrix(node):
            found["matrices"] += 1
    drop_unused(graph)
    if found["matrices"]:
        model.opset_imports[DOMAIN] = 1
    return {
        **found,
        "weights": "int8, a scale for every output column (of embeddings: for every row)",
        "activations": "two digits of 7 bits and a scale for every row, found as they come",
    }


@dataclass
class _Work:
    """What was quantized already: a matrix used twice is stored once, an activation read thrice is split once."""

    graph: ir.Graph
    codes: dict[tuple[str, int], tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    split: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = field(default_factory=dict)
    shared: dict[str, ir.Value] = field(default_factory=dict)

    def table(self, node: ir.Node) -> bool:
        """Whether the node looks the input's tokens up in a table of floats, which is then of bytes.

        A table of positions is small, and its rounding would be in every text alike.
        """
        table, rows = node.inputs[0], node.inputs[1]
        axis = node.attributes.get("axis")
        tokens = rows is not None and rows.is_graph_input()
        if table is None or not tokens or not _is_matrix(table) or (axis is not None and axis.as_int() != 0):
            return False
        codes, scales = self.coded(table, axis=1)
        build = _Builder(self.graph, node)
        picked = build("Cast", build("Gather", codes, rows), to=1)
        build.instead(build("Mul", picked, build("Gather", scales, rows)))
        return True

    def matrix(self, node: ir.Node) -> bool:
        """Whether the node multiplies by a matrix of floats, which is then of bytes."""
        weight, turned = _weight_of(node)
        if weight is None:
            return False
        codes, scales = self.coded(weight, axis=1 if turned else 0)
        build = _Builder(self.graph, node)
        high, low, largest = self.digits(node)
        if turned:  # an engine turns a constant once, when it loads it
            codes, scales = build("Transpose", codes, perm=[1, 0]), build("Reshape", scales, self.one("flat", [-1]))
        else:
            scales = build("Reshape", scales, self.one("flat", [-1]))
        zero = self.one("zero", np.uint8(DIGIT + 1))
        parts = [
            build("MatMulIntegerToFloat", digit, codes, step, scales, zero, domain=DOMAIN)
            for digit, step in ((high, self.step()), (low, self.fine_step()))
        ]
        product = build("Mul", build("Add", *parts), largest)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            product = build("Add", product, node.inputs[2])
        build.instead(product)
        return True

    def coded(self, weight: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
        """Bytes and scales of a matrix, its scales along `axis`: of columns (0) or of rows (1)."""
        key = str(weight.name), axis
        if key not in self.codes:
            assert weight.const_value is not None  # noqa: S101  # `_is_matrix` has looked
            values = weight.const_value.numpy()
            scales = np.maximum(np.abs(values).max(axis=axis, keepdims=True) / 127, np.finfo("float32").tiny)
            codes = np.rint(values / scales).astype(np.int8)
            made = (("codes", codes), ("scales", scales.astype(np.float32)))
            first, second = (constant(self.graph, f"{weight.name}.{part}_{axis}", value) for part, value in made)
            self.codes[key] = first, second
        return self.codes[key]

    def digits(self, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The node's activations as two digits, and each row's largest value."""
        given = node.inputs[0]
        assert given is not None  # noqa: S101  # a product has two sides
        if given not in self.split:
            build, zero = _Builder(self.graph, node), self.one("zero", np.uint8(DIGIT + 1))
            last = self.one("last", [-1])
            lowest = build("Neg", build("ReduceMin", given, last, keepdims=1))
            largest = build("Max", build("ReduceMax", given, last, keepdims=1), lowest, self.one("tiny", 1e-30))
            share = build("Div", given, largest)
            high = build("QuantizeLinear", share, self.step(), zero)
            rest = build("Sub", share, build("DequantizeLinear", high, self.step(), zero))
            self.split[given] = high, build("QuantizeLinear", rest, self.fine_step(), zero), largest
        return self.split[given]

    def step(self) -> ir.Value:
        """What one of the first digit is worth, as a share of the row's largest value."""
        return self.one("step", 1 / DIGIT)

    def fine_step(self) -> ir.Value:
        """The same of the second: together they reach from half a step below to half a step above."""
        return self.one("fine_step", 1 / (DIGIT * 2 * DIGIT))

    def one(self, name: str, value: Any) -> ir.Value:
        """A constant that many nodes share; numbers are float32, lists are int64."""
        if name not in self.shared:
            kept = np.float32(value) if isinstance(value, float) else value
            self.shared[name] = constant(self.graph, f"int8.{name}", np.asarray(kept))
        return self.shared[name]


@dataclass
class _Builder:
    """Puts new nodes in front of a node, and at last in its place."""

    graph: ir.Graph
    node: ir.Node

    def __call__(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """The output of a new node."""
        import onnx_ir as ir

        made = ir.node(op_type, inputs, attributes, domain=domain)
        self.graph.insert_before(self.node, made)
        return made.outputs[0]

    def instead(self, value: ir.Value) -> None:
        """Takes the node out; `value` is what it gave."""
        old = self.node.outputs[0]
        value.shape, value.type = old.shape, old.type
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        value.name, old.name = old.name, None
        self.graph.remove(self.node, safe=True)


def _is_matrix(value: ir.Value | None) -> bool:
    """Whether it is a constant float32 matrix that is worth it."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return False
    tensor = value.const_value
    shape = tensor.shape.numpy()
    return tensor.dtype.name == "FLOAT" and len(shape) == 2 and min(shape) >= SMALLEST


def _weight_of(node: ir.Node) -> tuple[ir.Value | None, bool]:
    """The constant matrix that a product multiplies by, and whether it lies there turned; None where there is none."""
    weight = node.inputs[1]
    if node.op_type == "Gemm":
        plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
        if any(name in node.attributes and node.attributes[name].value != value for name, value in plain.items()):
            return None, False
        turned = "transB" in node.attributes and node.attributes["transB"].value == 1
        return (weight, turned) if _is_matrix(weight) else (None, False)
    producer = weight.producer() if weight is not None else None
    if producer is not None and producer.op_type == "Transpose" and _is_matrix(producer.inputs[0]):
        return producer.inputs[0], True
    return (weight, False) if _is_matrix(weight) else (None, False)
