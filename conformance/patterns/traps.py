"""Plain layouts with something about them that a careless fusion would get wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import MS, Dim
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from conformance.patterns.book import Book
from conformance.patterns.consumers import draw_bias, draw_ends, matmul, matmul_add, transpose_matmul, transposed_weight

__all__ = ["BOOK"]

BOOK = Book(group=2)


@BOOK.fused("a second consumer of the product: the Add must stay", quick=True)
def _matmul_add_product_also_output(d: Draft) -> None:
    matmul_add(d, Weight(), 2)
    d.output("h", [ROWS, 64])


@BOOK.fused("the bias broadcasts the product: [2, 1, N] must not be folded", quick=True)
def _matmul_add_raising_rank(d: Draft) -> None:
    w = Weight()
    d.input("x", [ROWS, w.k])
    d.output("y", [2, ROWS, w.n])
    d.node("MatMul", ["x", d.weight(w)], "h")
    d.node("Add", ["h", draw_bias(d, w, [2, 1, w.n])], "y")


@BOOK.fused("N = 1 and a bias of 5: the Add widens the product and must stay", quick=True)
def _matmul_add_widening(d: Draft) -> None:
    w = Weight(n=1)
    d.input("x", [ROWS, w.k])
    d.output("y", [ROWS, 5])
    d.node("MatMul", ["x", d.weight(w)], "h")
    d.node("Add", ["h", draw_bias(d, w, [5])], "y")


def _matmul_add_shaped(d: Draft, shape: Sequence[int]) -> None:
    draw_ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.weight(Weight())], "h")
    d.node("Add", ["h", draw_bias(d, Weight(), shape)], "y")


for _shape in ([], [1], [1, 64]):
    _label = "x".join(map(str, _shape)) or "scalar"
    _draw = partial(_matmul_add_shaped, shape=_shape)
    BOOK.add(f"matmul-add-bias-{_label}", _draw, "fused", "a bias of another shape, folded or left as an Add")


def _add_gelu(d: Draft, lead: Sequence[Dim], product: str) -> None:
    d.input("x", [*lead, 128])
    d.output("y", [*lead, 64])
    d.node(product, ["x", d.weight(Weight())], "h", domain=MS if product == "FusedMatMul" else "")
    d.node("Gelu", [d.node("Add", ["h", draw_bias(d, Weight())], "a")], "y")


_gelus: tuple[tuple[str, Sequence[Dim], str], ...] = (
    ("gelu-1d", [], "MatMul"),
    ("gelu-2d", [ROWS], "MatMul"),
    ("gelu-3d", [2, ROWS], "MatMul"),
    ("gelu-3d-fixed", [2, 5], "MatMul"),
    ("gemm-gelu", [ROWS], "Gemm"),
    ("fused-matmul-gelu", [2, ROWS], "FusedMatMul"),
)


for _name, _lead, _product in _gelus:
    _draw = partial(_add_gelu, lead=_lead, product=_product)
    BOOK.add(f"matmul-add-{_name}", _draw, "fused", "ONNX Runtime puts the bias into one or the other", quick=True)


@BOOK.fused("the second summand is no constant")
def _matmul_add_residual(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.input("r", [ROWS, 64])
    d.node("MatMul", ["x", d.weight(Weight())], "h")
    d.node("Add", ["h", "r"], "y")


@BOOK.fused("two products added: neither is a bias", fusions=2)
def _matmul_add_matmul(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.weight(Weight())], "h")
    d.node("MatMul", ["x", d.weight(Weight(), "v")], "g")
    d.node("Add", ["h", "g"], "y")


@BOOK.fused("a bias that is also a graph input can be overridden", quick=True)
def _matmul_add_overridable_bias(d: Draft) -> None:
    matmul_add(d, Weight(), 2)
    d.input("bias", [64])


@BOOK.fused("Gemm's third input is there but empty")
def _gemm_empty_bias(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.node("Gemm", ["x", d.weight(replace(Weight(), n_major=True)), ""], "y", transB=1)


@BOOK.fused("DequantizeLinear's third input is there but empty", quick=True)
def _empty_zero_point(d: Draft) -> None:
    matmul(d, Weight(zero="none"), 2)
    d.nodes[0].input.append("")


@BOOK.fused("axis = -2 on [K, N]")
def _negative_axis(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.weight(Weight(), axis=-2)], "y")


@BOOK.fused("per-channel with axis = -1 and an explicit block_size = 0")
def _negative_axis_per_channel(d: Draft) -> None:
    w = Weight("int8", block=PER_CHANNEL)
    draw_ends(d, w, 2)
    d.node("MatMul", ["x", d.weight(w, axis=-1, block_size=0)], "y")


@BOOK.fused("no axis attribute: 1 is the default")
def _default_axis_transposed(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.node("MatMul", ["x", transposed_weight(d, Weight())], "y")
    (dequantize,) = (node for node in d.nodes if node.op_type == "DequantizeLinear")
    del dequantize.attribute[[a.name for a in dequantize.attribute].index("axis")]


@BOOK.fused("a Transpose without perm")
def _transpose_default_perm(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.node("Transpose", [d.weight(Weight(n_major=True))], "t")
    d.node("MatMul", ["x", "t"], "y")


@BOOK.fused("nodes without names")
def _unnamed_nodes(d: Draft) -> None:
    transpose_matmul(d, Weight(), 2)
    for node in d.nodes:
        node.name = ""


@BOOK.fused("negative scales are allowed")
def _negative_scales(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.weight(Weight(), scale_range=(-0.03, 0.03))], "y")


@BOOK.fused("a per-tensor scale of shape [1]", quick=True)
def _per_tensor_scale_vector(d: Draft) -> None:
    w = Weight("uint8", block=PER_TENSOR)
    draw_ends(d, w, 2)
    d.node("MatMul", ["x", d.weight(w, scale_shape=[1])], "y")


@BOOK.fused("a per-tensor scale in a Constant node's value_float")
def _constant_value_float(d: Draft) -> None:
    w = Weight("int8")
    draw_ends(d, w, 2)
    d.quantized("w", w.element, w.shape)
    d.node("Constant", [], "s", value_float=0.02)
    d.node("DequantizeLinear", ["w", "s"], "w_d")
    d.node("MatMul", ["x", "w_d"], "y")


@BOOK.fused("a block larger than K", quick=True)
def _block_above_k(d: Draft) -> None:
    matmul(d, Weight(k=40, block=64), 2)


@BOOK.fused("three layers, as many layouts, one after the other", fusions=3, bias=True, quick=True)
def _three_layers(d: Draft) -> None:
    d.input("x", [ROWS, 96])
    d.output("y", [ROWS, 32])
    one, two, three = (
        Weight(k=96, n=128),
        Weight("int4", 128, 64, n_major=True),
        Weight("int8", 64, 32, PER_CHANNEL),
    )
    d.node("MatMul", ["x", d.weight(one, "w1")], "h1")
    d.node("Gemm", ["h1", d.weight(two, "w2"), d.floats("bias", [64])], "h2", transB=1)
    d.node("Relu", ["h2"], "h3")
    d.node("MatMul", ["h3", d.weight(three, "w3")], "y")
