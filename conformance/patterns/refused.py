"""Plain layouts that must be left alone, with a reason: weights that can be overridden, and scales along the wrong axis."""

from __future__ import annotations

from functools import partial

from onnx import helper

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from conformance.patterns.book import Book
from conformance.patterns.consumers import draw_ends, matmul
from conformance.patterns.pattern import Expectation

__all__ = ["BOOK"]

BOOK = Book(group=2)


def _overridable(d: Draft, name: str, weight: Weight) -> None:
    matmul(d, weight, 2)
    (tensor,) = (t for t in d.initializers if t.name == name)
    d.inputs.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


_OVERRIDABLE: tuple[tuple[str, str, Expectation], ...] = (
    ("scale", "w_s", "reason"),
    ("zero-point", "w_z", "reason"),
    ("weight", "w", "unfused"),
)


for _label, _input, _expects in _OVERRIDABLE:
    _draw = partial(_overridable, name=_input, weight=Weight("uint8", block=PER_CHANNEL))
    BOOK.add(f"overridable-{_label}", _draw, _expects, "an initializer that is also a graph input", quick=True)


@BOOK.drawn("unfused", "the weight is a graph input")
def _weight_is_input(d: Draft) -> None:
    w = Weight("uint8", block=PER_TENSOR)
    draw_ends(d, w, 2)
    d.input("w", w.shape, "uint8")
    d.node("DequantizeLinear", ["w", d.floats("s", [])], "w_d")
    d.node("MatMul", ["x", "w_d"], "y")


@BOOK.reason("the zero points are a graph input")
def _zero_point_is_input(d: Draft) -> None:
    w = Weight("uint8", block=PER_TENSOR)
    draw_ends(d, w, 2)
    d.input("z", [], "uint8")
    d.node("DequantizeLinear", [d.quantized("w", "uint8", w.shape), d.floats("s", []), "z"], "w_d")
    d.node("MatMul", ["x", "w_d"], "y")


@BOOK.reason("no MatMul: DQ -> Add")
def _dq_add(d: Draft) -> None:
    d.input("x", [ROWS, 64])
    d.output("y", [ROWS, 64])
    d.dequantize("w", [1, 64], axis=1, element="uint8", block=32)
    d.node("Add", ["x", "w_d"], "y")


@BOOK.reason("a scale per row of [K, N]: no block along K shares one", quick=True)
def _per_row(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.dequantize("w", [128, 64], axis=0, block=PER_CHANNEL, element="int8")], "y")


@BOOK.reason("the same, N-major: a scale per column of [N, K]")
def _per_row_transposed(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.dequantize("w", [64, 128], axis=1, block=PER_CHANNEL, element="int8")
    d.node("MatMul", ["x", d.node("Transpose", ["w_d"], "t", perm=[1, 0])], "y")


@BOOK.reason("blocks along N of [K, N]", quick=True)
def _blocks_along_n(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.dequantize("w", [128, 64], axis=1)], "y")


@BOOK.reason("blocks along N of [N, K]")
def _blocks_along_n_gemm(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.node("Gemm", ["x", d.dequantize("w", [64, 128], axis=0)], "y", transB=1)


@BOOK.reason("16 bits: MatMulNBits has no such kernel")
def _sixteen_bits(d: Draft) -> None:
    matmul(d, Weight("uint16", zero="none"), 2)
