"""Models whose activations are quantized too, which ONNX Runtime has integer kernels for."""

from __future__ import annotations

from functools import partial

from onnx import TensorProto

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import raw_tensor
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from conformance.patterns.book import Book

__all__ = ["BOOK"]

BOOK = Book(group=3)


def _static(d: Draft, weight: Weight, *, quantized_result: bool, tail: bool = False) -> None:
    """x -> Q -> DQ -> MatMul [-> Q -> DQ] [-> a weight-only MatMul]."""
    d.input("x", [ROWS, weight.k])
    ends = [d.scalar("a_s", 0.03), d.constant(raw_tensor("a_z", TensorProto.UINT8, [], b"\x80"))]
    d.node("QuantizeLinear", ["x", *ends], "x_q")
    d.node("DequantizeLinear", ["x_q", *ends], "x_d")
    value = d.node("MatMul", ["x_d", d.weight(weight)], "h")
    if quantized_result:
        ends = [d.scalar("h_s", 0.5), "a_z"]
        d.node("QuantizeLinear", ["h", *ends], "h_q")
        value = d.node("DequantizeLinear", ["h_q", *ends], "h_d")
    if tail:
        value = d.node("MatMul", [value, d.dequantize("v", [weight.n, 48], axis=0)], "y0")
    d.output(d.node("Identity", [value], "y"), [ROWS, 48 if tail else weight.n])


_tensor_weight = Weight("uint8", block=PER_TENSOR)
_channel_weight = Weight("int8", block=PER_CHANNEL, zero="none")
_note = "an integer kernel takes it; leave it alone"
BOOK.add(
    "static-qdq-tensor",
    partial(_static, weight=_tensor_weight, quantized_result=True),
    "reason",
    _note,
    quick=True,
)
BOOK.add("static-qdq-channel", partial(_static, weight=_channel_weight, quantized_result=True), "reason", _note)
_draw = partial(_static, weight=_tensor_weight, quantized_result=False)
BOOK.add("static-qdq-input-only", _draw, "reason", "MatMulIntegerToFloat takes it")
_draw = partial(_static, weight=_tensor_weight, quantized_result=True, tail=True)
BOOK.add("static-qdq-and-weight-only", _draw, "fused", "only the second layer is weight-only")
_draw = partial(_static, weight=Weight(), quantized_result=False)
BOOK.add("static-qdq-4-bit-weight", _draw, "either", "no integer kernel takes 4 bits in blocks")
