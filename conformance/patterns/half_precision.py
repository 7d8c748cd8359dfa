"""Models that compute in float16 or bfloat16."""

from __future__ import annotations

from functools import partial

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.weight import Weight
from conformance.patterns.book import Book

__all__ = ["BOOK"]

BOOK = Book(group=3)


def _half_layers(d: Draft, kind: str, *, n_major: bool) -> None:
    """Two layers with a Relu between, computed in `kind`, float at both ends."""
    one, two = (
        Weight(n=96, scale=kind, n_major=n_major),
        Weight("int4", 96, 64, zero="none", scale=kind, n_major=n_major),
    )
    d.input("x", [ROWS, 128])
    d.output("y", [ROWS, 64])
    d.weight(one, "w1")
    d.weight(two, "w2")
    first, second = "w1_d", "w2_d"
    if n_major:
        first = d.node("Transpose", ["w1_d"], "t1", perm=[1, 0])
        second = d.node("Transpose", ["w2_d"], "t2", perm=[1, 0])
    d.cast("x", kind, "a")
    d.node("MatMul", ["a", first], "h1")
    d.node("Relu", ["h1"], "h2")
    d.node("MatMul", ["h2", second], "h3")
    d.cast("h3", "float", "y")


for _b in (False, True):
    _suffix = "-n-major" if _b else ""
    _draw = partial(_half_layers, kind="float16", n_major=_b)
    BOOK.add(f"float16-layers{_suffix}", _draw, "fused", "", precision="float16", fusions=2, quick=True)
    _draw = partial(_half_layers, kind="bfloat16", n_major=_b)
    _note = "the CPU provider has no bfloat16 kernels: stock fails to load it"
    BOOK.add(f"bfloat16-layers{_suffix}", _draw, "either", _note, precision="bfloat16", fusions=2, quick=True)
