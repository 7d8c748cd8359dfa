"""Zero points that say what MatMulNBits takes anyway."""

from __future__ import annotations

from functools import partial

from conformance.drawing.weight import Weight
from conformance.patterns.book import Book
from conformance.patterns.consumers import matmul, transpose_matmul

__all__ = ["BOOK"]

BOOK = Book(group=3)


for _element in ("uint4", "int4", "uint8", "int8", "uint2"):
    _draw = partial(matmul, w=Weight(_element, zero="default"), rank=2)
    BOOK.add(
        f"default-zero-{_element}",
        _draw,
        "fused",
        "zero points that MatMulNBits takes anyway",
        quick=_element == "uint4",
    )


_draw = partial(transpose_matmul, w=Weight(zero="default"), rank=2)
BOOK.add("default-zero-n-major", _draw, "fused", "zero points that MatMulNBits takes anyway")
