"""Operands that are constant only once nodes are carried out: as quantizers write them that leave that to the runtime."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import ELEMENTS, TYPES, raw_quantized, raw_tensor
from conformance.patterns.pattern import GEMM_T, MATMUL, Pattern, Step, either, fused, reason

__all__ = ["FOLDED"]

_K, _N = 64, 16
_X, _Y = [ROWS, _K], [ROWS, _N]
_fused = partial(fused, x=_X, y=_Y)
_either = partial(either, x=_X, y=_Y)
_SCALES = {"low": 0.01, "high": 0.03}


def _floats(name: str, *shape: int, kind: str = "float", **bounds: float) -> Step:
    return lambda d: d.floats(name, shape, kind, **(bounds or {"low": -0.2, "high": 0.2}))


def _scales(*shape: int, name: str = "s", kind: str = "float") -> Step:
    return lambda d: d.floats(name, shape, kind, **_SCALES)


def _integers(name: str, element: str, *shape: int) -> Step:
    return lambda d: d.quantized(name, element, shape)


def _numbers(name: str, element: str, values: Any) -> Step:
    """Integers of these values."""

    def draw(draft: Draft) -> None:
        array = np.asarray(values)
        bits = ELEMENTS[element].bits if element in ELEMENTS else 64
        draft.constant(raw_tensor(name, TYPES[element], array.shape, raw_quantized(array, bits)))

    return draw


def _ints(name: str, *values: int) -> Step:
    return lambda d: d.ints(name, values)


_BLOCKS = "axis = 1, block_size = 32"
_DEQUANTIZED = f"w_d = DequantizeLinear <{_BLOCKS}> (q, s, z)"
_BLOCK_SCALES = (_scales(_N, 2), _integers("z", "uint4", _N, 2))
_BYTE_SCALES = (_scales(_N, 2), _integers("z", "uint8", _N, 2))


def _weight(name: str, *steps: Step, **facts: Any) -> Pattern:
    """The integers `q`, uint8 [N, K], come from the steps."""
    return _fused(f"folded-{name}", *steps, *_BYTE_SCALES, _DEQUANTIZED, GEMM_T, **facts)


def _scale(name: str, *steps: Step, opset: int = 21, **facts: Any) -> Pattern:
    """The scales `s`, float [N, 2], come from the steps."""
    rest = (_integers("q", "uint4", _N, _K), _integers("z", "uint4", _N, 2), _DEQUANTIZED, GEMM_T)
    return _fused(f"folded-scales-{name}", *steps, *rest, opset=opset, **facts)


def _zero(name: str, *steps: Step, **facts: Any) -> Pattern:
    """The zero points `z`, uint8 [N, 2], come from the steps."""
    rest = (_integers("q", "uint8", _N, _K), _scales(_N, 2), _DEQUANTIZED, GEMM_T)
    return _fused(f"folded-zero-points-{name}", *steps, *rest, **facts)


def _unpacked(name: str, bits: int, parts: Sequence[str], **facts: Any) -> Pattern:
    """Bytes that hold several elements each, which are taken apart and interleaved."""
    per = 8 // bits
    names = [f"part{at}" for at in range(per)]
    nodes = "".join(f" {part}  {one}x = Unsqueeze({one}, last)" for part, one in zip(parts, names, strict=True))
    together = ", ".join(f"{one}x" for one in names)
    steps = (
        _integers("p", "uint8", _N, _K // per), _numbers("mask", "uint8", (1 << bits) - 1),
        *(_numbers(f"by{shift}", "uint8", shift) for shift in range(bits, 8, bits)), _numbers("sixteen", "uint8", 16),
        _ints("last", 2), _ints("shape", _N, _K), f"{nodes}  all = Concat <axis = 2> ({together})  q = Reshape(all, shape)",
    )  # fmt: skip
    return _weight(f"unpacked-{name}", *steps, **facts)


def _shifted(part: str, by: int) -> str:
    shifted = f'{part}s = BitShift <direction = "RIGHT"> (p, by{by})'
    return f"{shifted}  {part} = BitwiseAnd({part}s, mask)"


_LOW, _HIGH = "BitwiseAnd(p, mask)", 'BitShift <direction = "RIGHT"> (p, by4)'
_QUANTIZED = "q = QuantizeLinear <axis = 0> (f, s, z)  w_d = DequantizeLinear <axis = 0> (q, s, z)"
_QUANTIZED_BLOCKS = f"q = QuantizeLinear <{_BLOCKS}> (f, s, z)  {_DEQUANTIZED}"
_EIGHT = (_scales(_N), _integers("z", "int8", _N))

FOLDED = (
    # Float weights: AIMET, Brevitas, torch's fake quantization.
    _fused("folded-quantize", _floats("f", _N, _K), *_EIGHT, _QUANTIZED, GEMM_T, opset=13, quick=True),
    _fused("folded-quantize-blocks", _floats("f", _N, _K), *_BLOCK_SCALES, _QUANTIZED_BLOCKS, GEMM_T, quick=True),
    _fused("folded-quantize-blocks-k-major", _floats("f", _K, _N), _scales(2, _N), _integers("z", "int4", 2, _N),
           "q = QuantizeLinear <axis = 0, block_size = 32> (f, s, z)",
           "w_d = DequantizeLinear <axis = 0, block_size = 32> (q, s, z)", MATMUL),
    _fused("folded-quantize-without-zero-points", _floats("f", _N, _K), _scales(),
           "q = QuantizeLinear <output_dtype = 3> (f, s)  w_d = DequantizeLinear(q, s)", GEMM_T),
    _fused("folded-quantize-half", _floats("f", _N, _K, kind="float16"), _scales(_N, 2, kind="float16"),
           _integers("z", "uint4", _N, 2), _QUANTIZED_BLOCKS, GEMM_T, kind="float16", precision="float16"),
    _fused("folded-quantize-of-a-transpose", _floats("f", _K, _N), *_BLOCK_SCALES,
           "t = Transpose(f)", "q = QuantizeLinear <axis = 1, block_size = 32> (t, s, z)", _DEQUANTIZED, GEMM_T),
    _fused("folded-twice", _integers("i", "int8", _N, _K), _scales(_N, name="s8"), *_BLOCK_SCALES,
           "f = DequantizeLinear <axis = 0> (i, s8)", _QUANTIZED_BLOCKS, GEMM_T, quick=True),
    # Integers.
    _weight("clip", _integers("i", "uint8", _N, _K), _numbers("low", "uint8", 3), _numbers("high", "uint8", 250),
            "q = Clip(i, low, high)", quick=True),
    _weight("cast", _integers("i", "int32", _N, _K), _numbers("mask", "int32", 255),
            "m = BitwiseAnd(i, mask)  q = Cast <to = 2> (m)"),
    _weight("transpose", _integers("i", "uint8", _K, _N), "q = Transpose(i)"),
    _weight("reshape", _integers("i", "uint8", _N * _K), _ints("shape", _N, -1), "q = Reshape(i, shape)"),
    _weight("concat", _integers("i", "uint8", _N - 4, _K), _integers("j", "uint8", 4, _K),
            "q = Concat <axis = 0> (i, j)"),
    _weight("slice", _integers("i", "uint8", _N, 2 * _K), _ints("from", 1), _ints("to", 1000), _ints("axis", -1),
            _ints("step", 2), "q = Slice(i, from, to, axis, step)"),
    _weight("split", _integers("i", "uint8", 2 * _N, _K), "other, q = Split <num_outputs = 2> (i)"),
    _weight("gather", _integers("i", "uint8", 2 * _N, _K), _ints("rows", *range(2 * _N - 1, -1, -2)), "q = Gather(i, rows)"),
    _unpacked("low-first", 4, [f"part0 = {_LOW}", f"part1 = {_HIGH}"], quick=True),
    _unpacked("high-first", 4, [f"part0 = {_HIGH}", f"part1 = {_LOW}"]),
    _unpacked("by-division", 4, ["part0 = Mod(p, sixteen)", "part1 = Div(p, sixteen)"]),
    _unpacked("2-bits", 2, [f"part0 = {_LOW}", *(_shifted(f"part{at}", 2 * at) for at in (1, 2, 3))]),
    # Scales: LPBQ has integers that are dequantized by a scale for each channel.
    _scale("dequantized", _integers("i", "uint8", _N, 2), _floats("ss", _N, low=1e-4, high=2e-4),
           "s = DequantizeLinear <axis = 0> (i, ss)", quick=True),
    _scale("cast", _scales(_N, 2, name="h", kind="float16"), "s = Cast <to = 1> (h)"),
    _scale("reshape", _scales(2 * _N, name="f"), _ints("shape", _N, 2), "s = Reshape(f, shape)"),
    _scale("transpose", _scales(2, _N, name="t"), "s = Transpose(t)"),
    _scale("product", _scales(_N, 2, name="a"), _floats("b", _N, 1, low=0.5, high=2), "s = Mul(a, b)"),
    _scale("quotient", _scales(_N, 2, name="a"), _floats("b", low=0.5, high=2), "s = Div(a, b)"),
    _scale("powers", _numbers("e", "int32", np.arange(2 * _N).reshape(_N, 2) % 4 - 8), lambda d: d.scalar("two", 2),
           "s = Pow(two, e)"),
    _scale("expanded", _scales(_N, 1, name="a"), _ints("shape", _N, 2), "s = Expand(a, shape)"),
    _zero("cast", _numbers("i", "int32", np.arange(2 * _N).reshape(_N, 2)), "z = Cast <to = 2> (i)"),
    _zero("sub", _numbers("i", "uint8", np.arange(2 * _N).reshape(_N, 2) + 100), _numbers("by", "uint8", 100),
          "z = Sub(i, by)"),
    # What takes no product, or is not followed.
    _fused("folded-table", _floats("f", 512, _N), _scales(512), _integers("z", "int8", 512), _QUANTIZED,
           "y = Gather(w_d, x)", x=[2, 3], y=[2, 3, _N], x_kind="int64", kind="float"),
    reason("folded-convolution", _floats("f", 8, 4, 3, 3), _scales(8), _integers("z", "int8", 8), _QUANTIZED,
           "y = Conv <pads = [1, 1, 1, 1]> (x, w_d)", x=[ROWS, 4, 6, 6], y=[ROWS, 8, 6, 6]),
    _either("folded-scales-exp", _floats("a", _N, 2, low=-4, high=-3), _integers("q", "uint4", _N, _K),
            _integers("z", "uint4", _N, 2), "s = Exp(a)", _DEQUANTIZED, GEMM_T),
    _either("folded-scales-read-elsewhere", _integers("i", "uint8", _N, 2), _floats("ss", _N, low=1e-4, high=2e-4),
            _integers("q", "uint4", _N, _K), _integers("z", "uint4", _N, 2), _ints("axes", 1),
            "s = DequantizeLinear <axis = 0> (i, ss)", _DEQUANTIZED, "m = ReduceMax <keepdims = 0> (s, axes)",
            "h = Gemm <transB = 1> (x, w_d)  y = Mul(h, m)"),
)  # fmt: skip
