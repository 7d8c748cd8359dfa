"""Weights that no fused operator takes, which are dequantized once; and those that have to stay what they are."""

from functools import partial
from typing import Any

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from conformance.patterns.pattern import Pattern, Step, reason

__all__ = ["ONCE"]

_INT8: dict[str, Any] = {"block": PER_CHANNEL, "element": "int8", "zero": "none"}
_BLOCKS: dict[str, Any] = {"block": 4, "element": "uint4"}
_WIDE: dict[str, Any] = {"block": PER_TENSOR, "element": "int16", "scale_range": (1e-5, 3e-5)}


def _weight(*shape: int, axis: int = 0, how: dict[str, Any] = _INT8, name: str = "w") -> Step:
    return lambda draft: draft.dequantize(name, shape, axis=axis, **how)


def _bias(draft: Draft) -> str:
    """A bias as quantizers write it."""
    scales: Any = {"zero": "default", "scale_range": (1e-5, 3e-5)}
    return draft.dequantize("b", [16], axis=0, block=PER_CHANNEL, element="int32", **scales)


def _quantized_input(draft: Draft) -> None:
    draft.scalar("scale", 0.02)
    draft.quantized("zero", "uint8", [])
    draft.write("xq = QuantizeLinear(x, scale, zero)  xd = DequantizeLinear(xq, scale, zero)")


_conv = partial(reason, x=[ROWS, 8, 6, 6], y=[ROWS, 16, 6, 6])
_PADDED = "Conv <pads = [1, 1, 1, 1]>"


def _recurrent(kind: str, gates: int, **facts: Any) -> Pattern:
    layer = f"y = {kind} <hidden_size = 8> (x, w_d, r_d)"
    parts = (_weight(1, gates * 8, 12, axis=1), _weight(1, gates * 8, 8, axis=1, name="r"), layer)
    return reason(f"once-{kind.lower()}", *parts, x=[ROWS, 2, 12], y=[ROWS, 1, 2, 8], **facts)


ONCE = (
    _conv("once-conv", _weight(16, 8, 3, 3), _bias, f"y = {_PADDED} (x, w_d, b_d)", quick=True),
    _conv("once-conv-blocks", _weight(16, 8, 3, 3, axis=1, how=_BLOCKS), f"y = {_PADDED} (x, w_d)"),
    _conv("once-conv-int16", _weight(16, 8, 3, 3, how=_WIDE), f"y = {_PADDED} (x, w_d)"),
    _conv("once-conv-relu", _weight(16, 8, 3, 3), f"c = {_PADDED} (x, w_d)  y = Relu(c)"),
    _conv("once-conv-reshaped", _weight(16, 72), lambda d: d.ints("to", [16, 8, 3, 3]),
          f"r = Reshape(w_d, to)  y = {_PADDED} (x, r)"),
    reason("once-conv-transpose", _weight(8, 16, 3, 3, axis=1), "y = ConvTranspose <pads = [1, 1, 1, 1]> (x, w_d)",
           x=[ROWS, 8, 6, 6], y=[ROWS, 16, 6, 6]),
    _recurrent("LSTM", 4, quick=True),
    _recurrent("GRU", 3),
    _recurrent("RNN", 1),
    reason("once-einsum", _weight(8, 12, 16), 'y = Einsum <equation = "mbk,bkn->mbn"> (x, w_d)', x=[ROWS, 8, 12],
           y=[ROWS, 8, 16]),
    reason("once-mul", _weight(12, 16, axis=1), "y = Mul(x, w_d)", x=[ROWS, 12, 16], y=[ROWS, 12, 16]),
    # ONNX Runtime may compute these in integers.
    _conv("static-conv", _weight(16, 8, 3, 3), _quantized_input, f"c = {_PADDED} (xd, w_d)",
          "cq = QuantizeLinear(c, scale, zero)  y = DequantizeLinear(cq, scale, zero)", quick=True),
    _conv("static-conv-input-only", _weight(16, 8, 3, 3), _quantized_input, f"y = {_PADDED} (xd, w_d)"),
)  # fmt: skip
