"""Gemm and FusedMatMul with their attributes and biases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import MS
from conformance.drawing.weight import PER_TENSOR, Weight
from conformance.patterns.book import Book
from conformance.patterns.consumers import draw_bias, draw_ends
from conformance.patterns.pattern import Expectation

__all__ = ["BOOK"]

BOOK = Book(group=3)


def _gemm_with(
    d: Draft,
    *,
    trans_b: bool = False,
    trans_a: bool = False,
    bias: Sequence[int] | None = (64,),
    alpha: float = 1.0,
    beta: float = 1.0,
) -> None:
    w = Weight(n_major=trans_b)
    d.input("x", [w.k, ROWS] if trans_a else [ROWS, w.k])
    d.output("y", [ROWS, w.n])
    inputs = ["x", d.weight(w)] + ([] if bias is None else [draw_bias(d, w, bias)])
    d.node("Gemm", inputs, "y", transA=int(trans_a), transB=int(trans_b), alpha=alpha, beta=beta)


for _b in (False, True):
    _suffix = "-transB" if _b else ""
    for _name, _rest in (
        ("alpha", {"alpha": 0.5, "bias": None}),
        ("beta", {"beta": 2.0}),
        ("alpha-beta", {"alpha": 0.3, "beta": 0.7}),
        ("beta-0", {"beta": 0.0}),
        ("transA", {"trans_a": True}),
        ("bias-1xN", {"bias": (1, 64)}),
        ("bias-scalar", {"bias": ()}),
        ("bias-1", {"bias": (1,)}),
    ):
        _expects: Expectation = "either" if _name == "transA" else "fused"
        _draw = partial(_gemm_with, trans_b=_b, **_rest)
        _quick = _name in ("alpha-beta", "bias-1xN")
        BOOK.add(f"gemm-{_name}{_suffix}", _draw, _expects, "Gemm's attributes and biases", quick=_quick)


@BOOK.fused("a bias with a scale per row is no [N] bias")
def _gemm_bias_column(d: Draft) -> None:
    w = Weight()
    d.input("x", [5, w.k])
    d.output("y", [5, w.n])
    d.node("Gemm", ["x", d.weight(w), draw_bias(d, w, [5, 1])], "y")


@BOOK.fused("a bias that is computed")
def _gemm_bias_input(d: Draft) -> None:
    w = Weight(n_major=True)
    draw_ends(d, w, 2)
    d.input("c", [w.n])
    d.node("Gemm", ["x", d.weight(w), "c"], "y", transB=1)


@BOOK.fused("a bias that is dequantized, per tensor, from int32", quick=True)
def _gemm_bias_dq(d: Draft) -> None:
    w = Weight(n_major=True)
    draw_ends(d, w, 2)
    d.dequantize("b", [w.n], axis=0, block=PER_TENSOR, element="int32", zero="none")
    d.node("Gemm", ["x", d.weight(w), "b_d"], "y", transB=1)


@BOOK.fused("a bias that is dequantized, per tensor, from int8, behind a MatMul")
def _matmul_add_bias_dq(d: Draft) -> None:
    draw_ends(d, Weight(), 2)
    d.node("MatMul", ["x", d.weight(Weight())], "h")
    d.dequantize("b", [64], axis=0, block=PER_TENSOR, element="int8")
    d.node("Add", ["h", "b_d"], "y")


@BOOK.either("FusedMatMul with alpha")
def _fusedmatmul_alpha(d: Draft) -> None:
    w = Weight(n_major=True)
    draw_ends(d, w, 2)
    d.node("FusedMatMul", ["x", d.weight(w)], "y", domain=MS, transB=1, alpha=0.25)


@BOOK.either("FusedMatMul with transA")
def _fusedmatmul_trans_a(d: Draft) -> None:
    d.input("x", [128, ROWS])
    d.output("y", [ROWS, 64])
    d.node("FusedMatMul", ["x", d.weight(Weight())], "y", domain=MS, transA=1)
