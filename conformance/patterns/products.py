"""Products: behind casts, transposes and changes of shape, with several readers, attributes and biases, and on the left."""

from collections.abc import Iterator
from typing import Any

from onnx import TensorProto

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.weight import PER_TENSOR, Weight, Zero
from conformance.patterns.pattern import MATMUL, TO_FLOAT, TRANSPOSE, ZEROS, Pattern, Step, bias, either, fused, reason

__all__ = ["CHAINS", "GEMMS", "LEFT", "SHARED"]

_SQUARE, _SQUARE_N_MAJOR = Weight(n=128), Weight(n=128, n_major=True)
_SECOND_DQ = "h = MatMul(x, w_d)  v_d = DequantizeLinear <axis = 0, block_size = 32>"


def _duplicate_constants(d: Draft) -> None:
    for tensor in list(d.initializers):
        twin = TensorProto()
        twin.CopyFrom(tensor)
        twin.name += "2"
        d.initializers.append(twin)


SHARED = (
    fused("shared-dq", _SQUARE, "h = MatMul(x, w_d)  y = MatMul(h, w_d)", fusions=2, quick=True),
    fused("shared-transpose", _SQUARE_N_MAJOR, "t = Transpose <perm = [1, 0]> (w_d)  h = MatMul(x, t)  y = MatMul(h, t)",
          fusions=2),
    fused("shared-gemm-and-matmul", _SQUARE_N_MAJOR,
          "t = Transpose <perm = [1, 0]> (w_d)  h = MatMul(x, t)  y = Gemm <transB = 1> (h, w_d)", fusions=2),
    fused("two-dqs-one-weight", _SQUARE, f"{_SECOND_DQ} (w, w_s, w_z)  y = MatMul(h, v_d)", fusions=2, quick=True),
    fused("two-scales-one-weight", _SQUARE, lambda d: d.floats("v_s", [4, 128]),
          f"{_SECOND_DQ} (w, v_s)  y = MatMul(h, v_d)", fusions=2),
    fused("shared-with-add", lambda d: d.input("r", [128, 64]), Weight(), f"{MATMUL}  y2 = Add(r, w_d)",
          lambda d: d.output("y2", [128, 64]), stays=1),
    # The stored weight must not be dropped.
    fused("weight-also-read", Weight("uint8"), f"{MATMUL}  y2 = Cast <to = 1> (w)", lambda d: d.output("y2", [128, 64]),
          quick=True),
    fused("duplicate-weights", _SQUARE, _duplicate_constants, f"{_SECOND_DQ} (w2, w_s2, w_z2)  y = MatMul(h, v_d)",
          fusions=2),
)  # fmt: skip


def _gemms(trans_b: bool) -> Iterator[Pattern]:
    for name, alpha, beta, shape in (
        ("alpha", 0.5, 1.0, None),
        ("beta", 1.0, 2.0, (64,)),
        ("alpha-beta", 0.3, 0.7, (64,)),
        ("beta-0", 1.0, 0.0, (64,)),
        ("alpha-0", 0.0, 1.0, (64,)),
        ("factors-beyond-float16", 0.000015, -65530.0, (64,)),
        ("transA", 1.0, 1.0, (64,)),
        ("bias-1xN", 1.0, 1.0, (1, 64)),
        ("bias-scalar", 1.0, 1.0, ()),
        ("bias-1", 1.0, 1.0, (1,)),
    ):
        inputs, constants = ("x, w_d", []) if shape is None else ("x, w_d, bias", [bias(*shape)])
        transposed = f"transB = {int(trans_b)}, transA = {int(name == 'transA')}"
        yield (either if name == "transA" else fused)(
            f"gemm-{name}{'-transB' if trans_b else ''}", Weight(n_major=trans_b), *constants,
            f"y = Gemm <{transposed}, alpha = {alpha}, beta = {beta}> ({inputs})",
            x=(128, ROWS) if name == "transA" else None, quick=name in ("alpha-beta", "bias-1xN"))  # fmt: skip


GEMMS = (
    *_gemms(trans_b=False),
    *_gemms(trans_b=True),
    # A bias with a scale per row is no [N] bias.
    fused("gemm-bias-column", Weight(), bias(5, 1), "y = Gemm(x, w_d, bias)", x=[5, 128], y=[5, 64]),
    fused("gemm-bias-input", lambda d: d.input("c", [64]), Weight(n_major=True), "y = Gemm <transB = 1> (x, w_d, c)"),
    fused("gemm-bias-dq", lambda d: d.dequantize("b", [64], axis=0, block=PER_TENSOR, element="int32", zero="none"),
          Weight(n_major=True), "y = Gemm <transB = 1> (x, w_d, b_d)", quick=True),
    fused("matmul-add-bias-dq", Weight(), "h = MatMul(x, w_d)",
          lambda d: d.dequantize("b", [64], axis=0, block=PER_TENSOR, element="int8"), "y = Add(h, b_d)"),
    *(fused(f"gemm-float16-{name}", Weight(scale="float16"), bias(*shape, kind="float16"),
            f"y = Gemm <{factors}> (x, w_d, bias)", precision="float16", quick=name == "alpha-beta")
      for name, factors, shape in (("alpha-beta", "alpha = 0.000061, beta = 0.3", (64,)), ("alpha", "alpha = 300.0", (64,)),
                                   ("beta", "beta = 65530.0", (1, 64)))),
    fused("gemm-float16-bias-column", Weight(scale="float16"), bias(5, 1, kind="float16"), "y = Gemm(x, w_d, bias)",
          x=[5, 128], y=[5, 64], precision="float16"),
    either("fusedmatmul-alpha", Weight(n_major=True), "y = com.microsoft.FusedMatMul <transB = 1, alpha = 0.25> (x, w_d)"),
    either("fusedmatmul-trans-a", Weight(), "y = com.microsoft.FusedMatMul <transA = 1> (x, w_d)", x=[128, ROWS]),
)  # fmt: skip

LEFT = (
    either("left-static", lambda d: d.dequantize("w", [64, 128], axis=1), "y = MatMul(w_d, x)", x=[128, 6], y=[64, 6],
           quick=True),
    either("left-dynamic", lambda d: d.dequantize("w", [64, 128], axis=1), "y = MatMul(w_d, x)", x=[128, ROWS],
           y=[64, ROWS]),
    either("left-gemm", lambda d: d.dequantize("w", [128, 64], axis=0), "y = Gemm <transA = 1> (w_d, x)", x=[128, 6],
           y=[64, 6]),
    fused("left-gemm-bias", lambda d: d.dequantize("w", [64, 128], axis=1), lambda d: d.floats("c", [6]),
          "y = Gemm(w_d, x, c)", x=[128, 6], y=[64, 6]),
    either("batched", lambda d: d.dequantize("w", [4, 128, 64], axis=1), MATMUL, x=[4, ROWS, 128], y=[4, ROWS, 64],
           quick=True),
    either("batched-transpose", lambda d: d.dequantize("w", [4, 64, 128], axis=2),
           "t = Transpose <perm = [0, 2, 1]> (w_d)  y = MatMul(x, t)", x=[4, ROWS, 128], y=[4, ROWS, 64]),
)  # fmt: skip

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
    return lambda d: d.ints("to", shape)


_BLOCKS_TO_K_N = "r = Reshape(w_d, to)  t = Transpose <perm = [1, 0]> (r)"
_LEAD: dict[str, Any] = {"x": (4, ROWS, 128), "y": (4, ROWS, 64)}
CHAINS = (
    *(fused(f"cast-f16-to-f32-{name}", *steps, kind="float",
            precision="float16", quick=name in ("matmul", "gemm")) for name, steps in _CASTS),
    *(fused(f"cast-f16-to-f32-{element}", Weight(element, zero="none", scale="float16"),
            f"{TO_FLOAT}  y = MatMul(x, c)", kind="float", precision="float16") for element in ("int4", "uint8", "int8")),
    fused("cast-f32-to-f16-matmul", Weight(), "c = Cast <to = 10> (w_d)  y = MatMul(x, c)", kind="float16",
          precision="float16"),
    either("cast-bf16-to-f32-matmul", Weight(scale="bfloat16"), f"{TO_FLOAT}  y = MatMul(x, c)", kind="float",
           precision="bfloat16"),
    fused("identity", lambda d: d.quantized("w0", "uint8", [128, 64]), "w = Identity(w0)", lambda d: d.floats("s", [4, 64]),
          "w_d = DequantizeLinear <axis = 0, block_size = 32> (w, s)  i = Identity(w_d)  y = MatMul(x, i)"),
    # DequantizeLinear's own output_dtype: float16 scales, float result.
    fused("output-dtype", lambda d: d.weight(_HALF, output_dtype=1), MATMUL, opset=23, precision="float16"),
    *(fused(f"reshape-transpose-{element}-{suffix}", _blocks(element, zero), _to(64, -1),
            f"{_BLOCKS_TO_K_N}  y = MatMul(x, t)", quick=element == "uint4")
      for element in ("uint4", "int4", "uint8") for zero, suffix in ZEROS),
    fused("reshape-transpose-cast", _blocks(scale="float16"), _to(64, -1),
          f"{_BLOCKS_TO_K_N}  c = Cast <to = 1> (t)  y = MatMul(x, c)", precision="float16", quick=True),
    fused("transpose-reshape", _blocks(), _to(128, 64),
          "t = Transpose <perm = [1, 2, 0]> (w_d)  r = Reshape(t, to)  y = MatMul(x, r)"),
    fused("reshape-gemm-transB", _blocks(), _to(64, 128), "r = Reshape(w_d, to)  y = Gemm <transB = 1> (x, r)"),
    fused("lead-1", lambda d: d.dequantize("w", [1, 128, 64], axis=1), MATMUL, **_LEAD, quick=True),
    fused("lead-1-transpose", lambda d: d.dequantize("w", [1, 64, 128], axis=2),
          "t = Transpose <perm = [0, 2, 1]> (w_d)  y = MatMul(x, t)", **_LEAD),
    fused("squeeze", lambda d: d.dequantize("w", [1, 64, 128], axis=2), lambda d: d.ints("axes", [0]),
          "q = Squeeze(w_d, axes)  t = Transpose <perm = [1, 0]> (q)  y = MatMul(x, t)"),
    fused("unsqueeze", Weight(), lambda d: d.ints("axes", [0]), "u = Unsqueeze(w_d, axes)  y = MatMul(x, u)", **_LEAD),
    fused("reshape-lead", Weight(), _to(1, 128, 64), "r = Reshape(w_d, to)  y = MatMul(x, r)", **_LEAD),
    # The weight's leading one raises the product's rank: x [m, K], w [1, K, N], y [1, m, N].
    fused("lead-1-raising-rank", lambda d: d.dequantize("w", [1, 128, 64], axis=1), MATMUL, y=[1, ROWS, 64]),
    # A Reshape that mixes rows.
    reason("reshape-mixing", Weight(), _to(64, 128), "r = Reshape(w_d, to)  y = MatMul(x, r)", x=[ROWS, 64], y=[ROWS, 128],
           quick=True),
    # Blocks run along N.
    reason("transpose-square", Weight(n=128), TRANSPOSE),
)  # fmt: skip
