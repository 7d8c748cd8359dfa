"""What stands between a DequantizeLinear and its product: casts, transposes and changes of shape."""

from typing import Any

from conformance.drawing.draft import ROWS
from conformance.drawing.weight import Weight, Zero
from conformance.patterns.pattern import MATMUL, TO_FLOAT, TRANSPOSE, Step, either, fused, reason

__all__ = ["CHAINS"]

_HALF, _HALF_N_MAJOR = Weight(scale="float16"), Weight(scale="float16", n_major=True)
_CASTS: tuple[tuple[str, tuple[Step, ...]], ...] = (
    ("matmul", (_HALF, f"{TO_FLOAT}  y = MatMul(x, c)")),
    ("transpose-cast", (
        _HALF_N_MAJOR, "t = Transpose <perm = [1, 0]> (w_d)  c = Cast <to = 1> (t)  y = MatMul(x, c)")),
    ("cast-transpose", (_HALF_N_MAJOR, f"{TO_FLOAT}  t = Transpose <perm = [1, 0]> (c)  y = MatMul(x, t)")),
    ("gemm", (
        _HALF_N_MAJOR, TO_FLOAT, lambda d: d.floats("bias", [64]), "y = Gemm <transB = 1> (x, c, bias)")),
)  # fmt: skip


def _blocks(element: str = "uint4", zero: Zero = "random", scale: str = "float") -> Step:
    """A weight stored as [N, blocks, block]."""
    return lambda d: d.dequantize("w", [64, 4, 32], axis=2, element=element, zero=zero, scale=scale)


def _to(*shape: int) -> Step:
    """The shape to reshape to."""
    return lambda d: d.ints("to", shape)


_ZEROS: tuple[tuple[Zero, str], ...] = (("none", "sym"), ("random", "zp"))
_BLOCKS_TO_K_N = "r = Reshape(w_d, to)  t = Transpose <perm = [1, 0]> (r)"
_LEAD: dict[str, Any] = {"x": (4, ROWS, 128), "y": (4, ROWS, 64)}
CHAINS = (
    *(fused(f"cast-f16-to-f32-{name}", "float16 scales, float model", *steps, kind="float",
            precision="float16", quick=name in ("matmul", "gemm")) for name, steps in _CASTS),
    *(fused(f"cast-f16-to-f32-{element}", "float16 scales, float model", Weight(element, zero="none", scale="float16"),
            f"{TO_FLOAT}  y = MatMul(x, c)", kind="float", precision="float16") for element in ("int4", "uint8", "int8")),
    fused("cast-f32-to-f16-matmul", "float scales, float16 model",
          Weight(), "c = Cast <to = 10> (w_d)  y = MatMul(x, c)", kind="float16", precision="float16"),
    either("cast-bf16-to-f32-matmul", "bfloat16 scales, float model",
           Weight(scale="bfloat16"), f"{TO_FLOAT}  y = MatMul(x, c)", kind="float", precision="bfloat16"),
    fused("identity", "an Identity behind the DQ and one before it",
          lambda d: d.quantized("w0", "uint8", [128, 64]), "w = Identity(w0)", lambda d: d.floats("s", [4, 64]),
          "w_d = DequantizeLinear <axis = 0, block_size = 32> (w, s)  i = Identity(w_d)  y = MatMul(x, i)"),
    fused("output-dtype", "DequantizeLinear's own output_dtype: float16 scales, float result",
          lambda d: d.weight(_HALF, output_dtype=1), MATMUL, opset=23, precision="float16"),
    *(fused(f"reshape-transpose-{element}-{suffix}", "[N, blocks, block]", _blocks(element, zero), _to(64, -1),
            f"{_BLOCKS_TO_K_N}  y = MatMul(x, t)", quick=element == "uint4")
      for element in ("uint4", "int4", "uint8") for zero, suffix in _ZEROS),
    fused("reshape-transpose-cast", "[N, blocks, block], float16 scales", _blocks(scale="float16"), _to(64, -1),
          f"{_BLOCKS_TO_K_N}  c = Cast <to = 1> (t)  y = MatMul(x, c)", precision="float16", quick=True),
    fused("transpose-reshape", "[N, blocks, block]", _blocks(), _to(128, 64),
          "t = Transpose <perm = [1, 2, 0]> (w_d)  r = Reshape(t, to)  y = MatMul(x, r)"),
    fused("reshape-gemm-transB", "[N, blocks, block]", _blocks(), _to(64, 128),
          "r = Reshape(w_d, to)  y = Gemm <transB = 1> (x, r)"),
    fused("lead-1", "a [1, K, N] weight", lambda d: d.dequantize("w", [1, 128, 64], axis=1), MATMUL, **_LEAD, quick=True),
    fused("lead-1-transpose", "a [1, N, K] weight behind Transpose(0, 2, 1)",
          lambda d: d.dequantize("w", [1, 64, 128], axis=2),
          "t = Transpose <perm = [0, 2, 1]> (w_d)  y = MatMul(x, t)", **_LEAD),
    fused("squeeze", "a [1, N, K] weight, Squeeze, Transpose",
          lambda d: d.dequantize("w", [1, 64, 128], axis=2), lambda d: d.ints("axes", [0]),
          "q = Squeeze(w_d, axes)  t = Transpose <perm = [1, 0]> (q)  y = MatMul(x, t)"),
    fused("unsqueeze", "Unsqueeze to [1, K, N]",
          Weight(), lambda d: d.ints("axes", [0]), "u = Unsqueeze(w_d, axes)  y = MatMul(x, u)", **_LEAD),
    fused("reshape-lead", "Reshape to [1, K, N]",
          Weight(), _to(1, 128, 64), "r = Reshape(w_d, to)  y = MatMul(x, r)", **_LEAD),
    fused("lead-1-raising-rank", "the weight's leading one raises the product's rank: x [m, K], w [1, K, N], y [1, m, N]",
          lambda d: d.dequantize("w", [1, 128, 64], axis=1), MATMUL, y=[1, ROWS, 64]),
    reason("reshape-mixing", "a Reshape that mixes rows",
           Weight(), _to(64, 128), "r = Reshape(w_d, to)  y = MatMul(x, r)", x=[ROWS, 64], y=[ROWS, 128], quick=True),
    reason("transpose-square", "a square weight, transposed twice over: blocks run along N", Weight(n=128), TRANSPOSE),
)  # fmt: skip
