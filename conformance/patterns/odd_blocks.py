"""Block sizes that MatMulNBits lacks."""

from __future__ import annotations

from functools import partial

from conformance.drawing.weight import Weight
from conformance.patterns.book import Book
from conformance.patterns.consumers import matmul, transpose_matmul
from conformance.patterns.pattern import Expectation

__all__ = ["BOOK"]

BOOK = Book(group=3)


_ODD_BLOCKS: tuple[tuple[int, int, Expectation], ...] = (
    (8, 128, "either"),
    (48, 144, "fused"),
    (96, 192, "fused"),
    (80, 200, "fused"),
    (192, 192, "fused"),
    (100, 100, "fused"),
    (256, 72, "fused"),
    (4096, 72, "fused"),
    (20, 120, "reason"),
)


for _block, _k, _expects in _ODD_BLOCKS:
    for _n_major_too in (False, True):
        _name = f"block-{_block}-of-{_k}{'-n-major' if _n_major_too else ''}"
        _draw = partial(transpose_matmul if _n_major_too else matmul, w=Weight(k=_k, block=_block), rank=2)
        _note = "K as one block" if _block >= _k else "no power of two"
        BOOK.add(_name, _draw, _expects, _note, quick=_block in (48, 100) and not _n_major_too)


_draw = partial(matmul, w=Weight("int8", block=8, zero="none"), rank=2)
BOOK.add("block-8-int8", _draw, "either", "below the smallest block")
_draw = partial(matmul, w=Weight("uint2", k=144, block=48), rank=2)
BOOK.add("block-48-uint2", _draw, "either", "scales weigh as much as the weights")


for _element in ("uint2", "int4", "uint8", "int8"):
    for _block, _k in ((64, 20), (256, 36), (4096, 300)):
        _draw = partial(matmul, w=Weight(_element, k=_k, block=_block), rank=2)
        BOOK.add(f"block-{_block}-of-{_k}-{_element}", _draw, "fused", "K as one block")
