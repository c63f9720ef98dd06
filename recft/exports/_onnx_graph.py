"""What is done to a graph that was traced, and what is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

__all__ = ["constant", "described", "drop_unused", "tidy"]


def tidy(model: ir.Model) -> None:
    """Names the free axes, and keeps of a head the rows of the answers alone."""
    import onnx_ir as ir

    for value in model.graph.inputs:
        value.shape = ir.Shape(["batch", "length"])  # the exporter calls some by numbers of its own
    for node in list(model.graph):
        if node.op_type == "GatherND":
            _pick_now(model.graph, node)
    drop_unused(model.graph)


def _pick_now(graph: ir.Graph, node: ir.Node) -> None:
    """Picks constant rows of a constant matrix now: the whole vocabulary's head would stay in the file."""
    data, rows = (value.const_value if value is not None else None for value in node.inputs[:2])
    if data is None or rows is None or len(data.shape) != 2 or rows.shape.numpy()[1:] != (1,):
        return
    old = node.outputs[0]
    picked = constant(graph, f"{old.name}.rows", data.numpy()[rows.numpy()[:, 0]])
    old.replace_all_uses_with(picked)
    graph.remove(node, safe=True)


def constant(graph: ir.Graph, name: str, value: np.ndarray) -> ir.Value:
    """A new constant of the graph."""
    import onnx_ir as ir

    tensor = ir.tensor(value, name=name)
    made = ir.Value(name=name, shape=ir.Shape(value.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(made)
    return made


def drop_unused(graph: ir.Graph) -> None:
    """Takes out what nothing reads any more."""
    for node in reversed(list(graph)):
        if all(not output.uses() and not output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def described(model: ir.Model) -> dict[str, Any]:
    """Operator sets, and inputs and outputs by name, with dtype and axes: a word is a free axis."""
    graph = model.graph

    def sides(values: Sequence[ir.Value]) -> dict[str, Any]:
        return {
            str(value.name): {
                "dtype": str(value.dtype.numpy()) if value.dtype is not None else None,
                "axes": [size if isinstance(size, int) else str(size.value) for size in value.shape or ()],
            }
            for value in values
        }

    return {
        "ir_version": model.ir_version,
        "opset": {domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        "inputs": sides(graph.inputs),
        "outputs": sides(graph.outputs),
    }
