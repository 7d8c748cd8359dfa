"""Weights and products in the bodies of If, Loop and Scan."""

from __future__ import annotations

from functools import partial
from typing import Any

import onnx
from onnx import TensorProto, helper

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import raw_tensor
from conformance.drawing.weight import Weight
from conformance.patterns.book import Book

__all__ = ["BOOK"]

BOOK = Book(group=3)


def _branch(d: Draft, prefix: str, weight: Weight | None, dequantized: str, factor: float) -> onnx.GraphProto:
    """A body that multiplies the outer `x` by a weight of its own (or by the outer value `dequantized`), times a factor."""
    b = Draft("", parent=d, opset=d.opset)
    value = b.weight(weight) if weight else dequantized
    b.node("MatMul", ["x", value], f"{prefix}_h")
    b.scalar("factor", factor)
    b.output(b.node("Mul", [f"{prefix}_h", "factor"], f"{prefix}_y"), [ROWS, 64])
    d.opset = max(d.opset, b.opset)
    return b.graph(prefix)


def _outer_branch(d: Draft, prefix: str, w: Weight, factor: float) -> onnx.GraphProto:
    """A body with a DequantizeLinear of its own on the outer graph's constants."""
    b = Draft("", parent=d)
    attributes: dict[str, Any] = {"axis": w.axis, "block_size": w.block}
    value = b.node("DequantizeLinear", ["w", "w_s", "w_z"], f"{prefix}_d", **attributes)
    if w.n_major:
        value = b.node("Transpose", [value], f"{prefix}_t", perm=[1, 0])
    b.node("MatMul", ["x", value], f"{prefix}_h")
    b.scalar(f"{prefix}_factor", factor)
    b.output(b.node("Mul", [f"{prefix}_h", f"{prefix}_factor"], f"{prefix}_y"), [ROWS, 64])
    return b.graph(prefix)


def _if_ends(d: Draft) -> None:
    d.input("x", [ROWS, 128])
    d.input("cond", [], "bool")
    d.output("y", [ROWS, 64])


@BOOK.fused("weights inside the branches, under the same names", fusions=2, quick=True)
def _if_own_weights(d: Draft) -> None:
    _if_ends(d)
    one, two = _branch(d, "then", Weight(), "", 1.0), _branch(d, "else", Weight("int8"), "", 2.0)
    d.node("If", ["cond"], "y", then_branch=one, else_branch=two)


def _if_outer(d: Draft, *, constant_nodes: bool = False, n_major: bool = False) -> None:
    _if_ends(d)
    w = Weight(n_major=n_major)
    d.constant_nodes = constant_nodes
    d.weight(w)
    d.nodes.pop()
    one, two = _outer_branch(d, "then", w, 1.0), _outer_branch(d, "else", w, 2.0)
    d.node("If", ["cond"], "y", then_branch=one, else_branch=two)


_note = "DQ and MatMul in the branches, weights outside: stock fails to load it"
BOOK.add("if-outer-weights", partial(_if_outer), "fused", _note, fusions=2, quick=True)
_note = "DQ, Transpose and MatMul in the branches, weights outside"
BOOK.add("if-outer-weights-n-major", partial(_if_outer, n_major=True), "fused", _note, fusions=2)
BOOK.add(
    "if-outer-constant-nodes",
    partial(_if_outer, constant_nodes=True),
    "fused",
    "Constant nodes outside",
    fusions=2,
)


@BOOK.fused("the DQ outside, a MatMul in each branch", fusions=2)
def _if_outer_dq(d: Draft) -> None:
    _if_ends(d)
    d.weight(Weight())
    one, two = _branch(d, "then", None, "w_d", 1.0), _branch(d, "else", None, "w_d", 2.0)
    d.node("If", ["cond"], "y", then_branch=one, else_branch=two)


@BOOK.fused("an If in an If, weights outside both", fusions=3)
def _if_nested(d: Draft) -> None:
    _if_ends(d)
    d.weight(Weight())
    d.nodes.pop()
    inner = Draft("", parent=d)
    one, two = _outer_branch(inner, "one", Weight(), 1.0), _outer_branch(inner, "two", Weight(), 2.0)
    inner.output(inner.node("If", ["cond"], "inner_y", then_branch=one, else_branch=two), [ROWS, 64])
    other = Draft("", parent=d)
    other.dequantize("v", [128, 64], axis=0)
    other.output(other.node("MatMul", ["x", "v_d"], "other_y"), [ROWS, 64])
    d.node("If", ["cond"], "y", then_branch=inner.graph("inner"), else_branch=other.graph("other"))


def _loop(d: Draft, *, outer: bool) -> None:
    """Three rounds of h = h W."""
    w = Weight(n=128)
    d.input("x", [ROWS, 128])
    d.output("y", [ROWS, 128])
    d.ints("rounds", [3])
    d.constant(raw_tensor("go", TensorProto.BOOL, [], b"\x01"))
    body = Draft("", parent=d)
    body.input("i", [], "int64")
    body.input("go_in", [], "bool")
    body.input("h", [ROWS, 128])
    (d if outer else body).weight(w)
    if outer:
        body.nodes.append(d.nodes.pop())
    body.node("Identity", ["go_in"], "go_out")
    body.outputs.append(helper.make_tensor_value_info("go_out", TensorProto.BOOL, []))
    body.output(body.node("MatMul", ["h", "w_d"], "h_out"), [ROWS, 128])
    d.node("Loop", ["rounds", "go", "x"], "y", body=body.graph("body"))


BOOK.add("loop-own-weights", partial(_loop, outer=False), "fused", "the weight inside the body", quick=True)
BOOK.add("loop-outer-weights", partial(_loop, outer=True), "fused", "the weight outside, the DQ inside")


@BOOK.fused("a Scan over the rows, the weight inside")
def _scan(d: Draft) -> None:
    d.input("x", [ROWS, 128])
    d.output("y", [ROWS, 64])
    body = Draft("", parent=d)
    body.input("row", [128])
    body.output(body.node("MatMul", ["row", body.weight(Weight())], "out"), [64])
    d.node("Scan", ["x"], "y", body=body.graph("body"), num_scan_inputs=1)
