"""Plain layouts with something about them that a careless fusion would get wrong, and those that must be left alone."""

from collections.abc import Sequence

from onnx import helper

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import Dim
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from conformance.patterns.pattern import ADD, GEMM_T, MATMUL, TRANSPOSE, Expectation, Pattern, bias, fused, pattern, reason

__all__ = ["REFUSED", "TRAPS"]

_GELU = "a = Add(h, bias)  y = Gelu(a)"


def _without_names(d: Draft) -> None:
    for node in d.nodes:
        node.name = ""


def _gelu(name: str, lead: Sequence[Dim], product: str) -> Pattern:
    """The bias of a product, and a Gelu behind it."""
    steps = (Weight(), f"h = {product}(x, w_d)", bias(64), _GELU)
    note = "ONNX Runtime puts the bias into one or the other"
    return fused(f"matmul-add-{name}", note, *steps, x=[*lead, 128], y=[*lead, 64], quick=True)


TRAPS = (
    fused("matmul-add-product-also-output", "a second consumer of the product: the Add must stay",
          Weight(), bias(64), ADD, lambda d: d.output("h", [ROWS, 64]), quick=True),
    fused("matmul-add-raising-rank", "the bias broadcasts the product: [2, 1, N] must not be folded",
          Weight(), bias(2, 1, 64), ADD, y=[2, ROWS, 64], quick=True),
    fused("matmul-add-widening", "N = 1 and a bias of 5: the Add widens the product and must stay",
          Weight(n=1), bias(5), ADD, y=[ROWS, 5], quick=True),
    *(fused(f"matmul-add-bias-{label}", "a bias of another shape, folded or left as an Add", Weight(), bias(*shape), ADD)
      for label, shape in (("scalar", ()), ("1", (1,)), ("1x64", (1, 64)))),
    _gelu("gelu-1d", [], "MatMul"),
    _gelu("gelu-2d", [ROWS], "MatMul"),
    _gelu("gelu-3d", [2, ROWS], "MatMul"),
    _gelu("gelu-3d-fixed", [2, 5], "MatMul"),
    _gelu("gemm-gelu", [ROWS], "Gemm"),
    _gelu("fused-matmul-gelu", [2, ROWS], "com.microsoft.FusedMatMul"),
    fused("matmul-add-residual", "the second summand is no constant",
          lambda d: d.input("r", [ROWS, 64]), Weight(), "h = MatMul(x, w_d)  y = Add(h, r)"),
    fused("matmul-add-matmul", "two products added: neither is a bias",
          Weight(), "h = MatMul(x, w_d)", lambda d: d.weight(Weight(), "v"), "g = MatMul(x, v_d)  y = Add(h, g)", fusions=2),
    fused("matmul-add-overridable-bias", "a bias that is also a graph input can be overridden",
          Weight(), bias(64), ADD, lambda d: d.input("bias", [64]), quick=True),
    fused("gemm-empty-bias", "Gemm's third input is there but empty",
          Weight(n_major=True), 'y = Gemm <transB = 1> (x, w_d, "")'),
    fused("empty-zero-point", "DequantizeLinear's third input is there but empty",
          Weight(zero="none"), lambda d: d.nodes[0].input.append(""), MATMUL, quick=True),
    fused("negative-axis", "axis = -2 on [K, N]", lambda d: d.weight(Weight(), axis=-2), MATMUL),
    fused("negative-axis-per-channel", "per-channel with axis = -1 and an explicit block_size = 0",
          lambda d: d.weight(Weight("int8", block=PER_CHANNEL), axis=-1, block_size=0), MATMUL),
    fused("default-axis-transposed", "no axis attribute: 1 is the default",
          Weight(n_major=True), lambda d: d.nodes[0].attribute.pop(0), TRANSPOSE),
    fused("transpose-default-perm", "a Transpose without perm",
          Weight(n_major=True), "t = Transpose(w_d)  y = MatMul(x, t)"),
    fused("unnamed-nodes", "nodes without names", Weight(n_major=True), TRANSPOSE, _without_names),
    fused("negative-scales", "negative scales are allowed",
          lambda d: d.weight(Weight(), scale_range=(-0.03, 0.03)), MATMUL),
    fused("per-tensor-scale-vector", "a per-tensor scale of shape [1]",
          lambda d: d.weight(Weight("uint8", block=PER_TENSOR), scale_shape=[1]), MATMUL, quick=True),
    fused("constant-value-float", "a per-tensor scale in a Constant node's value_float",
          lambda d: d.quantized("w", "int8", [128, 64]),
          f"s = Constant <value_float = 0.02> ()  w_d = DequantizeLinear(w, s)  {MATMUL}"),
    fused("block-above-k", "a block larger than K", Weight(k=40, block=64), MATMUL, quick=True),
    fused("three-layers", "three layers, as many layouts, one after the other",
          lambda d: d.weight(Weight(k=96, n=128), "w1"), "h1 = MatMul(x, w1_d)",
          lambda d: d.weight(Weight("int4", 128, 64, n_major=True), "w2"), lambda d: d.floats("bias", [64]),
          "h2 = Gemm <transB = 1> (h1, w2_d, bias)  h3 = Relu(h2)",
          lambda d: d.weight(Weight("int8", 64, 32, PER_CHANNEL), "w3"), "y = MatMul(h3, w3_d)",
          x=[ROWS, 96], y=[ROWS, 32], fusions=3, bias=True, quick=True),
)  # fmt: skip


def _overridable(expects: Expectation, label: str, name: str) -> Pattern:
    """A weight with an initializer that is a graph input, too."""

    def override(d: Draft) -> None:
        (tensor,) = (tensor for tensor in d.initializers if tensor.name == name)
        d.inputs.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))

    steps, note = (Weight("uint8", block=PER_CHANNEL), MATMUL, override), "an initializer that is also a graph input"
    return pattern(expects, f"overridable-{label}", note, *steps, quick=True)


REFUSED = (
    _overridable("reason", "scale", "w_s"),
    _overridable("reason", "zero-point", "w_z"),
    _overridable("unfused", "weight", "w"),
    pattern("unfused", "weight-is-input", "the weight is a graph input",
            lambda d: d.input("w", [128, 64], "uint8"), lambda d: d.floats("s", []),
            f"w_d = DequantizeLinear(w, s)  {MATMUL}"),
    reason("zero-point-is-input", "the zero points are a graph input",
           lambda d: d.input("z", [], "uint8"), lambda d: d.quantized("w", "uint8", [128, 64]), lambda d: d.floats("s", []),
           f"w_d = DequantizeLinear(w, s, z)  {MATMUL}"),
    reason("dq-add", "no MatMul: DQ -> Add",
           lambda d: d.dequantize("w", [1, 64], axis=1, element="uint8", block=32), "y = Add(x, w_d)", x=[ROWS, 64]),
    reason("per-row", "a scale per row of [K, N]: no block along K shares one",
           lambda d: d.dequantize("w", [128, 64], axis=0, block=PER_CHANNEL, element="int8"), MATMUL, quick=True),
    reason("per-row-transposed", "the same, N-major: a scale per column of [N, K]",
           lambda d: d.dequantize("w", [64, 128], axis=1, block=PER_CHANNEL, element="int8"), TRANSPOSE),
    reason("blocks-along-n", "blocks along N of [K, N]",
           lambda d: d.dequantize("w", [128, 64], axis=1), MATMUL, quick=True),
    reason("blocks-along-n-gemm", "blocks along N of [N, K]", lambda d: d.dequantize("w", [64, 128], axis=0), GEMM_T),
    reason("sixteen-bits", "16 bits: MatMulNBits has no such kernel", Weight("uint16", zero="none"), MATMUL),
)  # fmt: skip
