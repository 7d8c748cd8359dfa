"""Plain layouts with something about them that a careless fusion would get wrong, and those that must be left alone."""

from functools import partial

from onnx import helper

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import Dim
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from conformance.patterns.pattern import ADD, GEMM_T, MATMUL, TRANSPOSE, Expectation, bias, fused, pattern, reason

__all__ = ["REFUSED", "TRAPS"]


def _without_names(d: Draft) -> None:
    for node in d.nodes:
        node.name = ""


def _as_vector(d: Draft, at: int) -> None:
    """Gives the scalar of that number the shape [1]."""
    d.initializers[at].dims.append(1)


# A Gelu behind a product and its bias: ONNX Runtime puts the bias into one or the other.
_GELUS: tuple[tuple[str, list[Dim], str], ...] = (
    ("gelu-1d", [], "MatMul"), ("gelu-2d", [ROWS], "MatMul"), ("gelu-3d", [2, ROWS], "MatMul"),
    ("gelu-3d-fixed", [2, 5], "MatMul"), ("gemm-gelu", [ROWS], "Gemm"),
    ("fused-matmul-gelu", [2, ROWS], "com.microsoft.FusedMatMul"),
)  # fmt: skip
TRAPS = (
    # A second consumer of the product: the Add must stay.
    fused("matmul-add-product-also-output", Weight(), bias(64), ADD, lambda d: d.output("h", [ROWS, 64]), quick=True),
    # [2, 1, N] must not be folded, and neither what widens the product.
    fused("matmul-add-raising-rank", Weight(), bias(2, 1, 64), ADD, y=[2, ROWS, 64], quick=True),
    fused("matmul-add-widening", Weight(n=1), bias(5), ADD, y=[ROWS, 5], quick=True),
    *(fused(f"matmul-add-bias-{label}", Weight(), bias(*shape), ADD)
      for label, shape in (("scalar", ()), ("1", (1,)), ("1x64", (1, 64)))),
    *(fused(f"matmul-add-{name}", Weight(), f"h = {product}(x, w_d)", bias(64), "a = Add(h, bias)  y = Gelu(a)",
            x=[*lead, 128], y=[*lead, 64], quick=True) for name, lead, product in _GELUS),
    fused("matmul-add-residual", lambda d: d.input("r", [ROWS, 64]), Weight(), "h = MatMul(x, w_d)  y = Add(h, r)"),
    # Neither is a bias.
    fused("matmul-add-matmul", Weight(), "h = MatMul(x, w_d)", lambda d: d.weight(Weight(), "v"),
          "g = MatMul(x, v_d)  y = Add(h, g)", fusions=2),
    fused("matmul-add-overridable-bias", Weight(), bias(64), ADD, lambda d: d.input("bias", [64]), quick=True),
    fused("gemm-empty-bias", Weight(n_major=True), 'y = Gemm <transB = 1> (x, w_d, "")'),
    fused("empty-zero-point", Weight(zero="none"), lambda d: d.nodes[0].input.append(""), MATMUL, quick=True),
    fused("negative-axis", lambda d: d.weight(Weight(), axis=-2), MATMUL),
    fused("negative-axis-per-channel", lambda d: d.weight(Weight("int8", block=PER_CHANNEL), axis=-1, block_size=0), MATMUL),
    fused("default-axis-transposed", Weight(n_major=True), lambda d: d.nodes[0].attribute.pop(0), TRANSPOSE),
    fused("transpose-default-perm", Weight(n_major=True), "t = Transpose(w_d)  y = MatMul(x, t)"),
    fused("unnamed-nodes", Weight(n_major=True), TRANSPOSE, _without_names),
    fused("negative-scales", lambda d: d.weight(Weight(), scale_range=(-0.03, 0.03)), MATMUL),
    # Of shape [1].
    fused("per-tensor-scale-vector", lambda d: d.weight(Weight("uint8", block=PER_TENSOR), scale_shape=[1]), MATMUL,
          quick=True),
    # The scale a scalar and its zero point a vector, and the other way round: ONNX Runtime takes both.
    *(fused(f"per-tensor-vector-{'scale' if at == 1 else 'zero-point'}-{element}",
            Weight(element, block=PER_TENSOR), partial(_as_vector, at=at), MATMUL)
      for element in ("uint4", "int8") for at in (1, 2)),
    fused("constant-value-float", lambda d: d.quantized("w", "int8", [128, 64]),
          f"s = Constant <value_float = 0.02> ()  w_d = DequantizeLinear(w, s)  {MATMUL}"),
    fused("block-above-k", Weight(k=40, block=64), MATMUL, quick=True),
    fused("three-layers", lambda d: d.weight(Weight(k=96, n=128), "w1"), "h1 = MatMul(x, w1_d)",
          lambda d: d.weight(Weight("int4", 128, 64, n_major=True), "w2"), lambda d: d.floats("bias", [64]),
          "h2 = Gemm <transB = 1> (h1, w2_d, bias)  h3 = Relu(h2)",
          lambda d: d.weight(Weight("int8", 64, 32, PER_CHANNEL), "w3"), "y = MatMul(h3, w3_d)", x=[ROWS, 96], y=[ROWS, 32],
          fusions=3, bias=True, quick=True),
)  # fmt: skip


def _override(d: Draft, name: str) -> None:
    """Has an initializer be a graph input, too."""
    (tensor,) = (tensor for tensor in d.initializers if tensor.name == name)
    d.inputs.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


_OVERRIDDEN: tuple[tuple[str, str, Expectation], ...] = (
    ("scale", "w_s", "reason"), ("zero-point", "w_z", "reason"), ("weight", "w", "unfused"),
)  # fmt: skip
REFUSED = (
    *(pattern(expects, f"overridable-{label}", Weight("uint8", block=PER_CHANNEL), MATMUL, partial(_override, name=name),
              quick=True) for label, name, expects in _OVERRIDDEN),
    pattern("unfused", "weight-is-input", lambda d: d.input("w", [128, 64], "uint8"), lambda d: d.floats("s", []),
            f"w_d = DequantizeLinear(w, s)  {MATMUL}"),
    reason("zero-point-is-input", lambda d: d.input("z", [], "uint8"), lambda d: d.quantized("w", "uint8", [128, 64]),
           lambda d: d.floats("s", []), f"w_d = DequantizeLinear(w, s, z)  {MATMUL}"),
    reason("dq-add", lambda d: d.dequantize("w", [1, 64], axis=1, element="uint8", block=32), "y = Add(x, w_d)",
           x=[ROWS, 64]),
    # No block along K shares a scale.
    reason("per-row", lambda d: d.dequantize("w", [128, 64], axis=0, block=PER_CHANNEL, element="int8"), MATMUL, quick=True),
    reason("per-row-transposed", lambda d: d.dequantize("w", [64, 128], axis=1, block=PER_CHANNEL, element="int8"),
           TRANSPOSE),
    reason("blocks-along-n", lambda d: d.dequantize("w", [128, 64], axis=1), MATMUL, quick=True),
    reason("blocks-along-n-gemm", lambda d: d.dequantize("w", [64, 128], axis=0), GEMM_T),
    # The values are others than those that are dequantized.
    reason("cast-to-integers", Weight("int8", block=PER_CHANNEL),
           "i = Cast <to = 6> (w_d)  c = Cast <to = 1> (i)  y = MatMul(x, c)", quick=True),
    # MatMulNBits has no such kernel.
    reason("sixteen-bits", Weight("uint16", zero="none"), MATMUL),
)  # fmt: skip
