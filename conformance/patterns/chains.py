"""What stands between a DequantizeLinear and its product: casts, transposes and changes of shape."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from onnx import TensorProto

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.weight import Weight
from conformance.patterns.book import Book
from conformance.patterns.consumers import draw_ends, transposed_weight

__all__ = ["BOOK"]

BOOK = Book(group=3)


def _cast_chain(d: Draft, weight: Weight, to: str, consumer: str) -> None:
    d.input("x", [ROWS, weight.k], to)
    d.output("y", [ROWS, weight.n], to)
    if consumer == "matmul":
        d.node("MatMul", ["x", d.cast(d.weight(weight), to)], "y")
    elif consumer == "transpose-cast":
        d.node("MatMul", ["x", d.cast(transposed_weight(d, weight), to)], "y")
    elif consumer == "cast-transpose":
        d.cast(d.weight(replace(weight, n_major=True)), to)
        d.node("MatMul", ["x", d.node("Transpose", ["c"], "t", perm=[1, 0])], "y")
    else:
        d.cast(d.weight(replace(weight, n_major=True)), to)
        d.node("Gemm", ["x", "c", d.floats("bias", [weight.n], to)], "y", transB=1)


for _consumer in ("matmul", "transpose-cast", "cast-transpose", "gemm"):
    _draw = partial(_cast_chain, weight=Weight(scale="float16"), to="float", consumer=_consumer)
    _quick = _consumer in ("matmul", "gemm")
    BOOK.add(
        f"cast-f16-to-f32-{_consumer}",
        _draw,
        "fused",
        "float16 scales, float model",
        precision="float16",
        quick=_quick,
    )


for _element in ("int4", "uint8", "int8"):
    _draw = partial(_cast_chain, weight=Weight(_element, zero="none", scale="float16"), to="float", consumer="matmul")
    BOOK.add(f"cast-f16-to-f32-{_element}", _draw, "fused", "float16 scales, float model", precision="float16")


_draw = partial(_cast_chain, weight=Weight(), to="float16", consumer="matmul")
BOOK.add("cast-f32-to-f16-matmul", _draw, "fused", "float scales, float16 model", precision="float16")
_draw = partial(_cast_chain, weight=Weight(scale="bfloat16"), to="float", consumer="matmul")
BOOK.add("cast-bf16-to-f32-matmul", _draw, "either", "bfloat16 scales, float model", precision="bfloat16")


@BOOK.fused("an Identity behind the DQ and one before it")
def _identity(d: Draft) -> None:
    w = Weight("uint8")
    draw_ends(d, w, 2)
    d.quantized("w0", w.element, w.shape)
    d.node("Identity", ["w0"], "w")
    d.node("DequantizeLinear", ["w", d.floats("s", [4, w.n])], "w_d", axis=0, block_size=w.block)
    d.node("MatMul", ["x", d.node("Identity", ["w_d"], "i")], "y")


@BOOK.fused("DequantizeLinear's own output_dtype: float16 scales, float result", opset=23, precision="float16")
def _output_dtype(d: Draft) -> None:
    w = Weight(scale="float16")
    d.input("x", [ROWS, w.k])
    d.output("y", [ROWS, w.n])
    d.node("MatMul", ["x", d.weight(w, output_dtype=TensorProto.FLOAT)], "y")


def _blocked(d: Draft, weight: Weight, *, cast: bool = False, transpose_first: bool = False, gemm: bool = False) -> None:
    """A weight stored as [N, blocks, block], brought to [K, N]."""
    w, blocks = weight, weight.k // weight.block
    kind = "float" if cast else w.scale
    d.input("x", [ROWS, w.k], kind)
    d.output("y", [ROWS, w.n], kind)
    value = d.dequantize("w", [w.n, blocks, w.block], axis=2, block=w.block, element=w.element, zero=w.zero, scale=w.scale)
    if gemm:
        d.node("Gemm", ["x", d.node("Reshape", [value, d.ints("to", [w.n, w.k])], "r")], "y", transB=1)
        return
    if transpose_first:
        value = d.node("Transpose", [value], "t", perm=[1, 2, 0])
        value = d.node("Reshape", [value, d.ints("to", [w.k, w.n])], "r")
    else:
        value = d.node("Reshape", [value, d.ints("to", [w.n, -1])], "r")
        value = d.node("Transpose", [value], "t", perm=[1, 0])
    d.node("MatMul", ["x", d.cast(value, "float") if cast else value], "y")


for _element in ("uint4", "int4", "uint8"):
    for _zero in ("none", "random"):
        _name = f"reshape-transpose-{_element}-{'sym' if _zero == 'none' else 'zp'}"
        _draw = partial(_blocked, weight=Weight(_element, zero=_zero))
        BOOK.add(_name, _draw, "fused", "[N, blocks, block]", quick=_element == "uint4")


_draw = partial(_blocked, weight=Weight(scale="float16"), cast=True)
BOOK.add(
    "reshape-transpose-cast",
    _draw,
    "fused",
    "[N, blocks, block], float16 scales",
    precision="float16",
    quick=True,
)
BOOK.add(
    "transpose-reshape",
    partial(_blocked, weight=Weight(), transpose_first=True),
    "fused",
    "[N, blocks, block]",
)
BOOK.add("reshape-gemm-transB", partial(_blocked, weight=Weight(), gemm=True), "fused", "[N, blocks, block]")


def _lead_ends(d: Draft, w: Weight) -> None:
    d.input("x", [4, ROWS, w.k])
    d.output("y", [4, ROWS, w.n])


@BOOK.fused("a [1, K, N] weight", quick=True)
def _lead_1(d: Draft) -> None:
    _lead_ends(d, Weight())
    d.node("MatMul", ["x", d.dequantize("w", [1, 128, 64], axis=1)], "y")


@BOOK.fused("a [1, N, K] weight behind Transpose(0, 2, 1)")
def _lead_1_transpose(d: Draft) -> None:
    _lead_ends(d, Weight())
    d.dequantize("w", [1, 64, 128], axis=2)
    d.node("MatMul", ["x", d.node("Transpose", ["w_d"], "t", perm=[0, 2, 1])], "y")


@BOOK.fused("a [1, N, K] weight, Squeeze, Transpose")
def _squeeze(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.dequantize("w", [1, 64, 128], axis=2)
    d.node("Squeeze", ["w_d", d.ints("axes", [0])], "q")
    d.node("MatMul", ["x", d.node("Transpose", ["q"], "t", perm=[1, 0])], "y")


@BOOK.fused("Unsqueeze to [1, K, N]")
def _unsqueeze(d: Draft) -> None:
    _lead_ends(d, Weight())
    d.node("MatMul", ["x", d.node("Unsqueeze", [d.weight(Weight()), d.ints("axes", [0])], "u")], "y")


@BOOK.fused("Reshape to [1, K, N]")
def _reshape_lead(d: Draft) -> None:
    _lead_ends(d, Weight())
    d.node("MatMul", ["x", d.node("Reshape", [d.weight(Weight()), d.ints("to", [1, 128, 64])], "r")], "y")


@BOOK.fused("the weight's leading one raises the product's rank: x [m, K], w [1, K, N], y [1, m, N]")
def _lead_1_raising_rank(d: Draft) -> None:
    d.input("x", [ROWS, 128])
    d.output("y", [1, ROWS, 64])
    d.node("MatMul", ["x", d.dequantize("w", [1, 128, 64], axis=1)], "y")


@BOOK.reason("a Reshape that mixes rows", quick=True)
def _reshape_mixing(d: Draft) -> None:
    d.input("x", [ROWS, 64])
    d.output("y", [ROWS, 128])
    d.node("MatMul", ["x", d.node("Reshape", [d.weight(Weight()), d.ints("to", [64, 128])], "r")], "y")


@BOOK.reason("a square weight, transposed twice over: blocks run along N")
def _transpose_square(d: Draft) -> None:
    w = Weight(n=128)
    draw_ends(d, w, 2)
    d.node("MatMul", ["x", d.node("Transpose", [d.weight(w)], "t", perm=[1, 0])], "y")
