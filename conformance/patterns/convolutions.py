"""Convolutions with kernels of one element: those that become products, and near misses, which are dequantized once."""

from typing import Any

from conformance.drawing.draft import ROWS
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from conformance.patterns.pattern import Pattern, Step, bias, fused, reason

__all__ = ["CONVOLUTIONS"]

_K, _N = 512, 128
_CONV = "y = Conv (x, w_d)"
_POOLED: dict[str, Any] = {"x": [ROWS, _K, 1, 1], "y": [ROWS, _N, 1, 1]}


def _weight(*kernel: int, k: int = _K, axis: int = 1, block: int = 32, element: str = "uint4", **how: Any) -> Step:
    return lambda d: d.dequantize("w", (_N, k, *(kernel or (1, 1))), axis=axis, block=block, element=element, **how)


def _forms(*names: str) -> tuple[Pattern, ...]:
    forms: dict[str, Step] = {
        "blocks": _weight(),
        "channels": _weight(axis=0, block=PER_CHANNEL),
        "one-scale": _weight(block=PER_TENSOR, element="int4"),
        "2-bit": _weight(element="uint2", block=64),
    }
    return tuple(fused(f"conv-single-{name}", forms[name], _CONV, **_POOLED) for name in names)


CONVOLUTIONS = (
    *_forms("blocks", "channels", "one-scale", "2-bit"),
    fused("conv-single-bias-relu", _weight(), bias(_N), "c = Conv (x, w_d, bias)  y = Relu(c)", quick=True, bias=True,
          **_POOLED),
    fused("conv-single-volume", _weight(1, 1, 1), _CONV, x=[ROWS, _K, 1, 1, 1], y=[ROWS, _N, 1, 1, 1]),
    fused("conv-single-reshaped", lambda d: d.dequantize("w", (_N, _K), axis=1), lambda d: d.ints("to", [_N, _K, 1, 1]),
          "r = Reshape(w_d, to)  y = Conv (x, r)", **_POOLED),
    fused("conv-behind-transpose", _weight(1), "t = Transpose <perm = [0, 2, 1]> (x)  y = Conv (t, w_d)",
          x=[2, ROWS, _K], y=[2, _N, ROWS], quick=True),
    fused("conv-before-transpose", _weight(), "c = Conv (x, w_d)  y = Transpose <perm = [0, 2, 3, 1]> (c)",
          x=[2, _K, ROWS, 3], y=[2, ROWS, 3, _N]),
    # It would be slower, or is no product.
    reason("conv-wide", _weight(), _CONV, quick=True, x=[ROWS, _K, 3, 5], y=[ROWS, _N, 3, 5]),
    reason("conv-single-8-bit", _weight(element="int8", axis=0, block=PER_CHANNEL, zero="none"), _CONV, **_POOLED),
    reason("conv-single-small", _weight(k=64), _CONV, x=[ROWS, 64, 1, 1], y=[ROWS, _N, 1, 1]),
    reason("conv-single-grouped", _weight(k=256), "y = Conv <group = 2> (x, w_d)", **_POOLED),
    reason("conv-single-padded", _weight(), "y = Conv <pads = [1, 0, 0, 0]> (x, w_d)",
           x=[ROWS, _K, 1, 1], y=[ROWS, _N, 2, 1]),
    reason("conv-patches", _weight(2, 2, axis=0, block=PER_CHANNEL), "y = Conv <strides = [2, 2]> (x, w_d)",
           x=[ROWS, _K, 4, 6], y=[ROWS, _N, 2, 3]),
)  # fmt: skip
