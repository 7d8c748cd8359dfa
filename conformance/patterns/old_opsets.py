"""Models below opset 21, whose DequantizeLinear has no blocks."""

from __future__ import annotations

from functools import partial

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from conformance.patterns.book import Book
from conformance.patterns.consumers import draw_ends
from conformance.patterns.pattern import Precision

__all__ = ["BOOK"]

BOOK = Book(group=3)


def _old(d: Draft, weight: Weight, *, domain: str, gemm: bool = False) -> None:
    draw_ends(d, weight, 2)
    value = d.weight(weight, domain=domain)
    if gemm:
        d.node("Gemm", ["x", value], "y", transB=1)
    elif weight.n_major:
        d.node("MatMul", ["x", d.node("Transpose", [value], "t", perm=[1, 0])], "y")
    else:
        d.node("MatMul", ["x", value], "y")


for _name, _weight in (
    ("int8-channel", Weight("int8", block=PER_CHANNEL, zero="none")),
    ("uint8-channel", Weight("uint8", block=PER_CHANNEL)),
    ("uint4-channel", Weight(block=PER_CHANNEL)),
    ("int4-channel", Weight("int4", block=PER_CHANNEL, zero="none")),
    ("int8-tensor", Weight("int8", block=PER_TENSOR)),
    ("uint4-tensor", Weight(block=PER_TENSOR)),
    ("uint8-channel-float16", Weight("uint8", block=PER_CHANNEL, scale="float16")),
    ("uint8-channel-n-major", Weight("uint8", block=PER_CHANNEL, n_major=True)),
    ("uint4-channel-n-major", Weight(block=PER_CHANNEL, n_major=True)),
):
    _precision: Precision = "float16" if _weight.scale == "float16" else "float"
    _draw = partial(_old, weight=_weight, domain=MS)
    _note = "com.microsoft DequantizeLinear, as ORT's quantizer writes it"
    _quick = _name in ("int8-channel", "uint4-channel-n-major")
    BOOK.add(f"opset-17-contrib-{_name}", _draw, "fused", _note, precision=_precision, opset=17, quick=_quick)


_draw = partial(_old, weight=Weight("uint8", block=PER_CHANNEL, n_major=True), domain=MS, gemm=True)
BOOK.add("opset-17-contrib-gemm-transB", _draw, "fused", "com.microsoft DequantizeLinear", opset=17)
_draw = partial(_old, weight=Weight(), domain=MS)
BOOK.add(
    "opset-17-contrib-blocks",
    _draw,
    "either",
    "ORT's schema has no block_size there: no valid model",
    opset=17,
)


for _opset in (13, 19):
    _draw = partial(_old, weight=Weight("int8", block=PER_CHANNEL, zero="none"), domain="")
    BOOK.add(
        f"opset-{_opset}-channel",
        _draw,
        "fused",
        "the standard DequantizeLinear before blocks",
        opset=_opset,
        group=2,
    )


_draw = partial(_old, weight=Weight("uint8", block=PER_TENSOR), domain="")
BOOK.add("opset-10-tensor", _draw, "fused", "the first DequantizeLinear", opset=10, group=2)
