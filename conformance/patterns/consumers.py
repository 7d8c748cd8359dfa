"""What consumes a dequantized weight, one function for each: MatMul, Gemm and FusedMatMul, with what may follow.

`x` and `y` have their types from the weight's scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import MS, Dim
from conformance.drawing.weight import Weight

__all__ = [
    "CONSUMERS",
    "WITH_BIAS",
    "Consumer",
    "draw_bias",
    "draw_ends",
    "matmul",
    "matmul_add",
    "transpose_matmul",
    "transposed_weight",
]


def _a_shape(columns: int, rank: int) -> list[Dim]:
    """A's shape (and, with N for K, the result's) at a rank."""
    shape: list[Dim] = [2, 1, ROWS, columns]
    return [2, *shape[2:]] if rank == 3 else shape[-rank:]


def draw_ends(d: Draft, w: Weight, rank: int) -> None:
    """Adds the input `x` and the output `y`."""
    d.input("x", _a_shape(w.k, rank), w.scale)
    d.output("y", _a_shape(w.n, rank), w.scale)


def transposed_weight(d: Draft, w: Weight, **attributes: Any) -> str:
    """An N-major weight behind its Transpose."""
    return d.node("Transpose", [d.weight(replace(w, n_major=True), **attributes)], "t", perm=[1, 0])


def draw_bias(d: Draft, w: Weight, shape: Sequence[int] | None = None) -> str:
    """A bias of the weight's float type."""
    return d.floats("bias", [w.n] if shape is None else shape, w.scale, low=-1, high=1)


def matmul(d: Draft, w: Weight, rank: int) -> None:
    draw_ends(d, w, rank)
    d.node("MatMul", ["x", d.weight(w)], "y")


def transpose_matmul(d: Draft, w: Weight, rank: int) -> None:
    draw_ends(d, w, rank)
    d.node("MatMul", ["x", transposed_weight(d, w)], "y")


def _transpose_matmul_negative_axis(d: Draft, w: Weight, rank: int) -> None:
    draw_ends(d, w, rank)
    d.node("MatMul", ["x", transposed_weight(d, w, axis=replace(w, n_major=True).axis - 2)], "y")


def _gemm(d: Draft, w: Weight, rank: int, *, trans_b: bool = False, bias: bool = False, relu: bool = False) -> None:
    draw_ends(d, w, rank)
    inputs = ["x", d.weight(replace(w, n_major=trans_b))] + ([draw_bias(d, w)] if bias else [])
    attributes: dict[str, Any] = {"transB": 1} if trans_b else {}
    d.node("Gemm", inputs, "h" if relu else "y", **attributes)
    if relu:
        d.node("Relu", ["h"], "y")


def _fused_matmul(d: Draft, w: Weight, rank: int) -> None:
    draw_ends(d, w, rank)
    d.node("FusedMatMul", ["x", d.weight(replace(w, n_major=True))], "y", domain=MS, transB=1)


def matmul_add(d: Draft, w: Weight, rank: int, *, swapped: bool = False, transposed: bool = False) -> None:
    draw_ends(d, w, rank)
    d.node("MatMul", ["x", transposed_weight(d, w) if transposed else d.weight(w)], "h")
    operands = ["h", draw_bias(d, w)]
    d.node("Add", operands[::-1] if swapped else operands, "y")


def _matmul_relu(d: Draft, w: Weight, rank: int, *, transposed: bool = False) -> None:
    draw_ends(d, w, rank)
    d.node("MatMul", ["x", transposed_weight(d, w) if transposed else d.weight(w)], "h")
    d.node("Relu", ["h"], "y")


def _dq_is_output(d: Draft, w: Weight, rank: int) -> None:
    matmul(d, w, rank)
    d.output("w_d", w.shape, w.scale)


def _constant_nodes(d: Draft, w: Weight, rank: int, *, transposed: bool = False) -> None:
    d.constant_nodes = True
    (transpose_matmul if transposed else matmul)(d, w, rank)


def _typed_data(d: Draft, w: Weight, rank: int) -> None:
    d.typed_data = True
    matmul(d, w, rank)


Consumer = Callable[[Draft, Weight, int], None]
CONSUMERS: Mapping[str, Consumer] = {
    "matmul": matmul,
    "transpose-matmul": transpose_matmul,
    "transpose-matmul-axis-1": _transpose_matmul_negative_axis,
    "gemm": _gemm,
    "gemm-bias": partial(_gemm, bias=True),
    "gemm-transB": partial(_gemm, trans_b=True),
    "gemm-transB-bias": partial(_gemm, trans_b=True, bias=True),
    "fusedmatmul-transB": _fused_matmul,
    "matmul-add": matmul_add,
    "add-matmul": partial(matmul_add, swapped=True),
    "transpose-matmul-add": partial(matmul_add, transposed=True),
    "matmul-relu": _matmul_relu,
    "transpose-matmul-relu": partial(_matmul_relu, transposed=True),
    "gemm-relu": partial(_gemm, relu=True),
    "gemm-transB-bias-relu": partial(_gemm, trans_b=True, bias=True, relu=True),
    "dq-is-output": _dq_is_output,
    "constant-nodes": _constant_nodes,
    "constant-nodes-transpose": partial(_constant_nodes, transposed=True),
    "typed-data": _typed_data,
}
WITH_BIAS = frozenset(name for name in CONSUMERS if "bias" in name or "add" in name)
