"""Weights and products in model-local functions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.weight import Weight
from conformance.patterns.book import Book
from conformance.patterns.consumers import draw_ends

__all__ = ["BOOK"]

BOOK = Book(group=3)


def _function(
    name: str, inputs: Sequence[str], nodes: Sequence[onnx.NodeProto], attributes: Sequence[str] = ()
) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    function: onnx.FunctionProto = helper.make_function("local", name, inputs, ["out"], nodes, imports, list(attributes))
    return function


def _linear(d: Draft, name: str, weight: Weight) -> list[str]:
    """The constants of one call of the function `Linear`."""
    d.weight(weight, name)
    d.nodes.pop()
    return [name, f"{name}_s", f"{name}_z"]


@BOOK.fused("DQ and MatMul in a function that is called twice, its weights passed in", fusions=2, quick=True)
def _function_called_twice(d: Draft) -> None:
    d.input("x", [ROWS, 128])
    d.output("y", [ROWS, 64])
    body = Draft("", parent=d)
    body.node("DequantizeLinear", ["w", "s", "z"], "d", axis=0, block_size=32)
    body.node("MatMul", ["a", "d"], "out")
    d.functions.append(_function("Linear", ["a", "w", "s", "z"], body.nodes))
    d.node("Linear", ["x", *_linear(d, "w1", Weight(n=128))], "h", domain="local")
    d.node("Linear", ["h", *_linear(d, "w2", Weight())], "y", domain="local")


@BOOK.fused("the weights are Constant nodes of the function")
def _function_constants(d: Draft) -> None:
    d.input("x", [ROWS, 128])
    d.output("y", [ROWS, 64])
    body = Draft("", parent=d)
    body.constant_nodes = True
    body.node("MatMul", ["a", body.weight(Weight())], "out")
    d.functions.append(_function("Linear", ["a"], body.nodes))
    d.node("Linear", ["x"], "y", domain="local")


@BOOK.fused("a function in a function, and the block size an attribute of the call")
def _function_nested(d: Draft) -> None:
    d.input("x", [ROWS, 128])
    d.output("y", [ROWS, 64])
    inner = Draft("", parent=d)
    inner.node("DequantizeLinear", ["w", "s", "z"], "d", axis=1)
    block = onnx.AttributeProto(name="block_size", ref_attr_name="block", type=onnx.AttributeProto.INT)
    inner.nodes[0].attribute.append(block)
    inner.node("Transpose", ["d"], "out", perm=[1, 0])
    outer = Draft("", parent=d)
    outer.node("Dequantized", ["w", "s", "z"], "t", domain="local", block=32)
    outer.node("MatMul", ["a", "t"], "out")
    d.functions.append(_function("Dequantized", ["w", "s", "z"], inner.nodes, ["block"]))
    d.functions.append(_function("Linear", ["a", "w", "s", "z"], outer.nodes))
    d.node("Linear", ["x", *_linear(d, "w", Weight("uint8", n_major=True))], "y", domain="local")


@BOOK.fused("only the DequantizeLinear is in the function")
def _function_dq_only(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    body = Draft("", parent=d)
    body.node("DequantizeLinear", ["w", "s", "z"], "out", axis=0, block_size=32)
    d.functions.append(_function("Dequantized", ["w", "s", "z"], body.nodes))
    d.node("Dequantized", _linear(d, "w", Weight()), "w_d", domain="local")
    d.node("MatMul", ["x", "w_d"], "y")
