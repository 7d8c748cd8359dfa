"""Gather from a quantized table, and tables that are the output head too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import Dim
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from conformance.patterns.book import Book
from conformance.patterns.pattern import Expectation

__all__ = ["BOOK"]

BOOK = Book(group=3)


def _gather(d: Draft, *, ids: Sequence[Dim] = (ROWS,), cast: bool = False, **rest: Any) -> None:
    """An embedding table of [64, 128]."""
    kind = rest.get("scale", "float")
    d.input("x", ids, "int64")
    d.dequantize("w", [64, 128], **({"axis": 1} | rest))
    d.node("Gather", ["w_d", "x"], "h" if cast else "y")
    if cast:
        d.cast("h", "float", "y")
    d.output("y", [*ids, 128], "float" if cast else kind)


for _element in ("uint4", "int4", "uint8", "int8"):
    for _zero in ("none", "random"):
        _name = f"gather-{_element}-{'sym' if _zero == 'none' else 'zp'}"
        _expects: Expectation = "either" if _element.endswith("int8") else "fused"
        _draw = partial(_gather, element=_element, zero=_zero)
        BOOK.add(_name, _draw, _expects, "block-wise on the last axis", quick=_element == "uint4")


BOOK.add("gather-ids-2d", partial(_gather, ids=(2, ROWS)), "fused", "")
BOOK.add("gather-axis-1", partial(_gather, axis=-1), "fused", "axis = -1")
BOOK.add("gather-block-128", partial(_gather, block=128), "fused", "a scale per row, as a block")
BOOK.add("gather-block-48", partial(_gather, block=48), "either", "no power of two")
BOOK.add("gather-float16", partial(_gather, scale="float16"), "fused", "", precision="float16")
BOOK.add("gather-float16-cast", partial(_gather, scale="float16", cast=True), "fused", "", precision="float16")
BOOK.add("gather-uint2", partial(_gather, element="uint2"), "either", "")
BOOK.add("gather-per-row", partial(_gather, axis=0, block=PER_CHANNEL), "either", "a scale per row", quick=True)
BOOK.add("gather-per-tensor", partial(_gather, block=PER_TENSOR), "either", "one scale")
BOOK.add("gather-blocks-along-rows", partial(_gather, axis=0), "either", "blocks along the vocabulary")


@BOOK.either("Gather along the columns")
def _gather_columns(d: Draft) -> None:
    d.input("x", [ROWS], "int64")
    d.node("Gather", [d.dequantize("w", [128, 64], axis=0), "x"], "y", axis=1)
    d.output("y", [128, ROWS])


def _tied(d: Draft, *, two_dqs: bool) -> None:
    """An embedding table that is the output head too."""
    d.input("x", [ROWS], "int64")
    d.dequantize("w", [64, 128], axis=1)
    d.node("Gather", ["w_d", "x"], "h")
    if two_dqs:
        d.node("DequantizeLinear", ["w", "w_s", "w_z"], "v_d", axis=1, block_size=32)
    d.node("Transpose", ["v_d" if two_dqs else "w_d"], "t", perm=[1, 0])
    d.node("MatMul", ["h", "t"], "y")
    d.output("y", [ROWS, 64])


BOOK.add(
    "tied-one-dq",
    partial(_tied, two_dqs=False),
    "fused",
    "embedding and head on one weight",
    fusions=2,
    quick=True,
)
BOOK.add("tied-two-dqs", partial(_tied, two_dqs=True), "fused", "embedding and head on one weight", fusions=2)
