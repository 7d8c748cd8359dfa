"""Weights that Cast, Sub and Mul dequantize in place of a DequantizeLinear, as torchao and shipped models have them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import raw_tensor
from conformance.patterns.pattern import Step, fused, pattern, reason

__all__ = ["WRITTEN_OUT"]

_K, _N, _BLOCK = 64, 32, 16
_IN_BLOCKS = (_N, _K // _BLOCK, _BLOCK)
_MATMUL = "y = MatMul(x, w_d)"
_TRANSPOSED = "t = Transpose <perm = [1, 0]> (w_d)  y = MatMul(x, t)"
_JOINED = "j = Reshape(w_d, whole)  t = Transpose <perm = [1, 0]> (j)  y = MatMul(x, t)"
_TIMES = "c = Cast <to = 1> (w)  w_d = Mul(c, s)"
_MINUS = "c = Cast <to = 1> (w)  f = Cast <to = 1> (z)  d = Sub(c, f)  w_d = Mul(d, s)"


def _weight(*shape: int, element: str = "int8", zeros: str = "", scale: str = "float", scales: Sequence[int] = ()) -> Step:
    """Integers w, scales s and, if they have a type, zero points z of the shape of the scales."""

    def draw(draft: Draft) -> None:
        draft.quantized("w", element, shape or (_K, _N))
        draft.floats("s", scales, scale)
        if zeros == "float":
            values = draft.rng.integers(-8, 8, tuple(scales)).astype(np.float32)
            draft.constant(raw_tensor("z", TensorProto.FLOAT, scales, values.tobytes()))
        elif zeros:
            draft.quantized("z", zeros, scales)

    return draw


def _ints(name: str, *values: int) -> Step:
    return lambda draft: draft.ints(name, values)


def _scalar(name: str, value: float) -> Step:
    return lambda draft: draft.scalar(name, value)


_BLOCKS = (_ints("blocks", *_IN_BLOCKS), _ints("whole", _N, _K))
_BLOCK_SCALES = (*_IN_BLOCKS[:2], 1)
_ENDS: dict[str, Any] = {"x": [ROWS, _K], "y": [ROWS, _N]}

WRITTEN_OUT = (
    fused("written-out-tensor", _weight(), _TIMES, _MATMUL, **_ENDS, quick=True),
    fused("written-out-channel", _weight(scales=(_N,)), _TIMES, _MATMUL, **_ENDS),
    fused("written-out-channel-n-major", _weight(_N, _K, scales=(_N, 1)), _TIMES, _TRANSPOSED, **_ENDS),
    fused("written-out-gemm-transB", _weight(_N, _K, scales=(_N, 1)), _TIMES, "y = Gemm <transB = 1> (x, w_d)", **_ENDS),
    fused("written-out-along-k", _weight(scales=(_K, 1)), _TIMES, _MATMUL, **_ENDS),
    fused("written-out-scale-first", _weight(scales=(1, _N)), "c = Cast <to = 1> (w)  w_d = Mul(s, c)", _MATMUL, **_ENDS),
    fused("written-out-zero-points", _weight(element="uint8", zeros="uint8", scales=(_N,)), _MINUS, _MATMUL, **_ENDS,
          quick=True),
    fused("written-out-uint4", _weight(element="uint4", zeros="uint4", scales=(_N,)), _MINUS, _MATMUL, **_ENDS),
    fused("written-out-float-zero-points", _weight(zeros="float", scales=(_N,)),
          "c = Cast <to = 1> (w)  d = Sub(c, z)  w_d = Mul(d, s)", _MATMUL, **_ENDS),
    fused("written-out-subtracted-as-int32", _weight(element="uint8", zeros="uint8", scales=(_N,)),
          "i = Cast <to = 6> (w)  j = Cast <to = 6> (z)  d = Sub(i, j)  c = Cast <to = 1> (d)  w_d = Mul(c, s)", _MATMUL,
          **_ENDS),
    fused("written-out-one-zero-point", _weight(element="uint8", scales=(_N,)), _scalar("z", 128),
          "c = Cast <to = 1> (w)  d = Sub(c, z)  w_d = Mul(d, s)", _MATMUL, **_ENDS),
    fused("written-out-blocks", _weight(_N, _K, zeros="float", scales=_BLOCK_SCALES), *_BLOCKS,
          "r = Reshape(w, blocks)  c = Cast <to = 1> (r)  d = Sub(c, z)  w_d = Mul(d, s)", _JOINED, **_ENDS, quick=True),
    fused("written-out-blocks-int4", _weight(_N, _K, element="int4", scales=_BLOCK_SCALES), *_BLOCKS,
          "c = Cast <to = 1> (w)  r = Reshape(c, blocks)  w_d = Mul(r, s)", _JOINED, **_ENDS),
    fused("written-out-blocks-unsqueezed", _weight(_N, _K, scales=_BLOCK_SCALES[:2]), *_BLOCKS, _ints("last", -1),
          "r = Reshape(w, blocks)  c = Cast <to = 1> (r)  u = Unsqueeze(s, last)  w_d = Mul(c, u)", _JOINED, **_ENDS),
    fused("written-out-blocks-k-major", _weight(_K // _BLOCK, _BLOCK, _N, scales=(_K // _BLOCK, 1, _N)),
          _ints("whole", _K, _N), _TIMES, "r = Reshape(w_d, whole)  y = MatMul(x, r)", **_ENDS),
    fused("written-out-transposed", _weight(_N, _K, scales=(_N,)),
          "t = Transpose <perm = [1, 0]> (w)  c = Cast <to = 1> (t)  w_d = Mul(c, s)", _MATMUL, **_ENDS),
    fused("written-out-float16", _weight(scale="float16", scales=(_N,)), "c = Cast <to = 10> (w)  w_d = Mul(c, s)", _MATMUL,
          **_ENDS, kind="float16", precision="float16"),
    fused("written-out-scales-cast", _weight(scale="float16", scales=(_N,)),
          "c = Cast <to = 1> (w)  f = Cast <to = 1> (s)  w_d = Mul(c, f)", _MATMUL, **_ENDS),
    fused("written-out-constant-nodes", _weight(scales=(_N,)), _TIMES, _MATMUL, **_ENDS, constant_nodes=True),
    fused("written-out-cast-shared", _weight(scales=(_N,)), _TIMES, "h = MatMul(x, w_d)  i = MatMul(x, c)  y = Add(h, i)",
          **_ENDS, fusions=2),
    fused("written-out-two-readers", _weight(scales=(_N,)), _TIMES, "h = MatMul(x, w_d)  i = MatMul(x, w_d)  y = Add(h, i)",
          **_ENDS, fusions=2),
    fused("written-out-is-output", _weight(scales=(_N,)), _TIMES, _MATMUL, lambda d: d.output("w_d", [_K, _N]), **_ENDS),
    fused("written-out-table", _weight(20000, 64, scales=(20000, 1)), _TIMES, "y = Gather(w_d, x)", x=[5], y=[5, 64],
          x_kind="int64"),
    fused("written-out-table-in-blocks", _weight(20000, 2, 32, element="uint4", zeros="uint4", scales=(20000, 2, 1)),
          _ints("whole", 20000, 64), _MINUS, "r = Reshape(w_d, whole)  y = Gather(r, x)", x=[5], y=[5, 64], x_kind="int64"),
    # Another precision of zero points or scales than the fused operator has, and readers that it does not replace.
    reason("written-out-fractions", _weight(scales=(_N,)), _scalar("z", 0.5),
           "c = Cast <to = 1> (w)  d = Sub(c, z)  w_d = Mul(d, s)", _MATMUL, **_ENDS, quick=True),
    reason("written-out-each-element", _weight(scales=(_K, _N)), _TIMES, _MATMUL, **_ENDS),
    reason("written-out-conv", _weight(16, 8, 3, 3, scales=(16, 1, 1, 1)), _TIMES, "y = Conv <pads = [1, 1, 1, 1]> (x, w_d)",
           x=[ROWS, 8, 6, 6], y=[ROWS, 16, 6, 6]),
    reason("written-out-small-table", _weight(100, 64, scales=(100, 1)), _TIMES, "y = Gather(w_d, x)", x=[ROWS],
           y=[ROWS, 64], x_kind="int64"),
    # No weights, for all that is known.
    pattern("unfused", "written-out-scaled-at-run-time", _weight(scales=(_N,)), "c = Cast <to = 1> (w)  e = ReduceMax(x)"
            "  w_d = Mul(c, e)", _MATMUL, **_ENDS),
    pattern("unfused", "written-out-input", lambda d: d.floats("s", (_N,)), "i = Cast <to = 3> (x)  c = Cast <to = 1> (i)"
            "  y = Mul(c, s)", x=[ROWS, _N], y=[ROWS, _N]),
)  # fmt: skip
"""Blocks are axes of their own; scales and zero points broadcast."""
