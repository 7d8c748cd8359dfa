"""Weights on the left of a product, and products of batches."""

from __future__ import annotations

from functools import partial

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import Dim
from conformance.patterns.book import Book

__all__ = ["BOOK"]

BOOK = Book(group=3)


def _left(d: Draft, columns: Dim) -> None:
    d.input("x", [128, columns])
    d.output("y", [64, columns])
    d.node("MatMul", [d.dequantize("w", [64, 128], axis=1), "x"], "y")


BOOK.add("left-static", partial(_left, columns=6), "either", "W x, static", quick=True)
BOOK.add("left-dynamic", partial(_left, columns=ROWS), "either", "W x, dynamic")


@BOOK.either("Gemm with the weight on the left, transposed")
def _left_gemm(d: Draft) -> None:
    d.input("x", [128, 6])
    d.output("y", [64, 6])
    d.node("Gemm", [d.dequantize("w", [128, 64], axis=0), "x"], "y", transA=1)


@BOOK.fused("Gemm with the weight on the left and a bias for each column")
def _left_gemm_bias(d: Draft) -> None:
    d.input("x", [128, 6])
    d.output("y", [64, 6])
    d.node("Gemm", [d.dequantize("w", [64, 128], axis=1), "x", d.floats("c", [6])], "y")


def _batched(d: Draft, *, transposed: bool) -> None:
    d.input("x", [4, ROWS, 128])
    d.output("y", [4, ROWS, 64])
    value = d.dequantize("w", [4, 64, 128] if transposed else [4, 128, 64], axis=2 if transposed else 1)
    if transposed:
        value = d.node("Transpose", [value], "t", perm=[0, 2, 1])
    d.node("MatMul", ["x", value], "y")


BOOK.add("batched", partial(_batched, transposed=False), "either", "[4, K, N], one weight a batch", quick=True)
BOOK.add("batched-transpose", partial(_batched, transposed=True), "either", "[4, N, K], one weight a batch")
