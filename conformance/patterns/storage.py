"""Weights stored in other types, blocks and opsets, tables of embeddings, and activations that are quantized too."""

from typing import Any

from onnx import TensorProto

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import FLOATS, MS, raw_tensor
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from conformance.patterns.pattern import MATMUL, TRANSPOSE, ZEROS, Expectation, Pattern, Step, either, fused, pattern, reason
from ort_qdq_plugin.system.platform import host

__all__ = ["DEFAULT_ZEROS", "EMBEDDINGS", "HALF_PRECISION", "ODD_BLOCKS", "OLD_OPSETS", "STATIC"]


# Sizes that MatMulNBits lacks.
_BLOCKS: tuple[tuple[int, int, Expectation], ...] = (
    (8, 128, "either"), (48, 144, "fused"), (96, 192, "fused"), (80, 200, "fused"), (192, 192, "fused"), (100, 100, "fused"),
    (256, 72, "fused"), (4096, 72, "fused"), (20, 120, "reason"),
)  # fmt: skip
ODD_BLOCKS = (
    *(pattern(expects, f"block-{block}-of-{k}{'-n-major' if n_major else ''}", Weight(k=k, block=block, n_major=n_major),
              TRANSPOSE if n_major else MATMUL, quick=block in (48, 100) and not n_major)
      for block, k, expects in _BLOCKS for n_major in (False, True)),
    either("block-8-int8", Weight("int8", block=8, zero="none"), MATMUL),
    # Scales weigh as much as the weights.
    either("block-48-uint2", Weight("uint2", k=144, block=48), MATMUL),
    *(fused(f"block-{block}-of-{k}-{element}", Weight(element, k=k, block=block), MATMUL)
      for element in ("uint2", "int4", "uint8", "int8") for block, k in ((64, 20), (256, 36), (4096, 300))),
)  # fmt: skip


_ROWS_OF_A_TABLE = 6000
"""So many that a table of this width is fused, however many indices there are, but for bytes with a scale for each row."""
_STORED = ("shape", "axis", "block", "element", "zero", "scale", "output_dtype")


def _gather(expects: Expectation, name: str, nodes: str = "y = Gather(w_d, x)", **other: Any) -> Pattern:
    """Gather from a table of [6000, 128], with blocks along the columns, unless it is stored, or ends, otherwise."""
    how = {key: other.pop(key) for key in _STORED if key in other}
    stored: dict[str, Any] = {"shape": (_ROWS_OF_A_TABLE, 128), "axis": 1, "scale": "float"} | how
    ids = other.pop("ids", (ROWS,))
    ends = {"x": ids, "x_kind": "int64", "y": (*ids, 128), "kind": stored["scale"], "precision": stored["scale"]}
    return pattern(expects, name, lambda d: d.dequantize("w", **stored), nodes, **(ends | other))


_V = "v_d = DequantizeLinear <axis = 1, block_size = 32> (w, w_s, w_z)"
_TIED = "h = Gather(w_d, x)  {}  t = Transpose <perm = [1, 0]> ({})  y = MatMul(h, t)"
EMBEDDINGS = (
    *(_gather("fused", f"gather-{element}-{suffix}", element=element, zero=zero, quick=element == "uint4",
              opset=25 if element.endswith("2") else 21)
      for element in ("uint2", "int2", "uint4", "int4", "uint8", "int8") for zero, suffix in ZEROS),
    *(_gather("fused", f"gather-{element}-{name}", ids=(2, 3), element=element, axis=axis, block=block,
              zero=zero)
      for element, zero in (("uint4", "random"), ("int8", "none"), ("uint8", "random"))
      for name, axis, block in (("per-row", 0, PER_CHANNEL), ("per-tensor", 1, PER_TENSOR))),
    *(_gather("fused", f"gather-{element}-per-column", element=element, block=PER_CHANNEL) for element in ("int8", "uint8")),
    _gather("fused", "gather-ids-2d", ids=(2, ROWS)),
    _gather("fused", "gather-axis-1", axis=-1),
    _gather("fused", "gather-block-128", shape=(_ROWS_OF_A_TABLE, 256), block=128, y=(ROWS, 256)),
    _gather("fused", "gather-block-48", block=48),
    _gather("reason", "gather-block-40", block=40),
    _gather("fused", "gather-block-40-int8", block=40, element="int8"),
    _gather("fused", "gather-float16", scale="float16"),
    _gather("fused", "gather-float16-cast", "h = Gather(w_d, x)  y = Cast <to = 1> (h)", scale="float16", kind="float"),
    _gather("fused", "gather-float16-as-float", scale="float16", output_dtype=FLOATS["float"], kind="float", opset=23),
    _gather("reason", "gather-small-table", shape=(64, 128), quick=True),
    _gather("fused", "gather-small-table-few-ids", shape=(64, 128), ids=(2, 3)),
    _gather("reason", "gather-per-column", block=PER_CHANNEL),
    _gather("reason", "gather-blocks-along-rows", axis=0),
    _gather("reason", "gather-columns", "y = Gather <axis = 1> (w_d, x)", shape=(128, 64), axis=0, y=(128, ROWS)),
    _gather("fused", "tied-one-dq", _TIED.format("", "w_d"), y=(ROWS, _ROWS_OF_A_TABLE), fusions=2, quick=True),
    _gather("fused", "tied-two-dqs", _TIED.format(_V, "v_d"), y=(ROWS, _ROWS_OF_A_TABLE), fusions=2),
)  # fmt: skip


def _half_layers(expects: Expectation, kind: str, n_major: bool) -> Pattern:
    """Two layers with a Relu between, computed in `kind`, float at both ends."""
    one = Weight(n=96, scale=kind, n_major=n_major)
    two = Weight("int4", 96, 64, zero="none", scale=kind, n_major=n_major)
    transposes = "t1 = Transpose <perm = [1, 0]> (w1_d)  t2 = Transpose <perm = [1, 0]> (w2_d)" if n_major else ""
    w1, w2 = ("t1", "t2") if n_major else ("w1_d", "w2_d")
    nodes = f"a = Cast <to = {FLOATS[kind]}> (x)  h1 = MatMul(a, {w1})  h2 = Relu(h1)  h3 = MatMul(h2, {w2})"
    return pattern(
        expects, f"{kind}-layers{'-n-major' if n_major else ''}",
        lambda d: d.weight(one, "w1"), lambda d: d.weight(two, "w2"), f"{transposes}  {nodes}  y = Cast <to = 1> (h3)",
        precision=kind, fusions=2, quick=True)  # fmt: skip


# The CPU provider has no bfloat16 kernels: stock fails to load it.
_HALVES: tuple[tuple[Expectation, str], ...] = (("fused", "float16"), ("either", "bfloat16"))
HALF_PRECISION = tuple(_half_layers(*half, n_major) for n_major in (False, True) for half in _HALVES)


def _contrib(weight: Weight) -> Step:
    """A weight as ONNX Runtime's quantizer writes it where ONNX has no such DequantizeLinear yet."""
    return lambda d: d.weight(weight, domain=MS)


_CHANNEL, _CHANNEL_N_MAJOR = Weight("uint8", block=PER_CHANNEL), Weight("uint8", block=PER_CHANNEL, n_major=True)
_CHANNEL_SYM, _TENSOR = Weight("int8", block=PER_CHANNEL, zero="none"), Weight("uint8", block=PER_TENSOR)
_OLD: tuple[tuple[str, Weight], ...] = (
    ("int8-channel", _CHANNEL_SYM),
    ("uint8-channel", _CHANNEL),
    ("uint4-channel", Weight(block=PER_CHANNEL)),
    ("int4-channel", Weight("int4", block=PER_CHANNEL, zero="none")),
    ("int8-tensor", Weight("int8", block=PER_TENSOR)),
    ("uint4-tensor", Weight(block=PER_TENSOR)),
    ("uint8-channel-float16", Weight("uint8", block=PER_CHANNEL, scale="float16")),
    ("uint8-channel-n-major", _CHANNEL_N_MAJOR),
    ("uint4-channel-n-major", Weight(block=PER_CHANNEL, n_major=True)),
)
_QUICK_OLD = ("int8-channel", "uint4-channel-n-major")
OLD_OPSETS = (
    *(fused(f"opset-17-contrib-{name}", _contrib(weight), TRANSPOSE if weight.n_major else MATMUL,
            kind=weight.scale, precision=weight.scale, opset=17, quick=name in _QUICK_OLD) for name, weight in _OLD),
    fused("opset-17-contrib-gemm-transB", _contrib(_CHANNEL_N_MAJOR), "y = Gemm <transB = 1> (x, w_d)", opset=17),
    # ORT's schema has no block_size there: no valid model.
    either("opset-17-contrib-blocks", _contrib(Weight()), MATMUL, opset=17),
    *(fused(f"opset-{opset}-channel", _CHANNEL_SYM, MATMUL,
            opset=opset, group=2) for opset in (13, 19)),
    fused("opset-10-tensor", _TENSOR, MATMUL, opset=10, group=2),
)  # fmt: skip


def _quantized_input(d: Draft, kind: int = TensorProto.UINT8, zero: bytes = b"\x80") -> None:
    d.scalar("a_s", 0.03)
    d.constant(raw_tensor("a_z", kind, [], zero))
    d.write("x_q = QuantizeLinear(x, a_s, a_z)  x_d = DequantizeLinear(x_q, a_s, a_z)")


def _int8_input(d: Draft) -> None:
    _quantized_input(d, TensorProto.INT8, b"\0")


def _quantized_result(d: Draft) -> None:
    d.write("h = MatMul(x_d, w_d)")
    d.scalar("h_s", 0.5)
    d.write("h_q = QuantizeLinear(h, h_s, a_z)  h_d = DequantizeLinear(h_q, h_s, a_z)")


def _moved_input(nodes: str, *axes: int) -> Step:
    """What the input goes through once it is quantized, to `h`, which is multiplied."""

    def draw(d: Draft) -> None:
        _quantized_input(d)
        d.ints("axes", axes)
        d.write(f"{nodes}  y = MatMul(h, w_d)")

    return draw


_int8 = reason if host.is_arm() else fused
"""On ARM, ONNX Runtime's integer kernels take activations of int8."""
_FLOAT_RESULT = "h = MatMul(x_d, w_d)  y = Identity(h)"
_SHARED = "a = MatMul(x_d, w_d)  b = MatMul(x_d, v_d)  y = Sub(a, b)"
STATIC = (
    # An integer kernel takes it; leave it alone.
    reason("static-qdq-tensor", _quantized_input, _TENSOR, _quantized_result, "y = Identity(h_d)", quick=True),
    reason("static-qdq-channel", _quantized_input, _CHANNEL_SYM, _quantized_result, "y = Identity(h_d)"),
    reason("static-qdq-input-only", _quantized_input, _TENSOR, _FLOAT_RESULT),
    fused("static-qdq-and-weight-only", _quantized_input, _TENSOR, _quantized_result,
          lambda d: d.dequantize("v", [64, 48], axis=0), "y0 = MatMul(h_d, v_d)  y = Identity(y0)", y=[ROWS, 48]),
    # ONNX Runtime moves QuantizeLinear and DequantizeLinear through what moves elements alone.
    reason("static-qdq-squeeze", _CHANNEL_SYM, _moved_input("h = Squeeze(x_d, axes)", 1), x=[ROWS, 1, 128], quick=True),
    reason("static-qdq-reshape", _CHANNEL_SYM, _moved_input("h = Reshape(x_d, axes)", -1, 128), x=[ROWS, 1, 128]),
    reason("static-qdq-transpose", _CHANNEL_SYM, _moved_input("h = Transpose <perm = [1, 0]> (x_d)"), x=[128, ROWS]),
    # No integer kernel takes these, which stock ONNX Runtime dequantizes on each run.
    fused("static-qdq-relu", _quantized_input, _CHANNEL_SYM, "r = MatMul(x_d, w_d)  h = Relu(r)  y = Neg(h)"),
    _int8("static-qdq-int8-shared", _int8_input, _CHANNEL_SYM, lambda d: d.weight(_CHANNEL_SYM, "v"), _SHARED,
          fusions=2, quick=True),
    _int8("static-qdq-int8-of-the-caller", lambda d: d.scalar("a_s", 0.03), _CHANNEL_SYM,
          "x_d = DequantizeLinear(x, a_s)  y = MatMul(x_d, w_d)", x_kind="int8"),
    # No integer kernel takes 4 bits in blocks.
    either("static-qdq-4-bit-weight", _quantized_input, Weight(), _FLOAT_RESULT),
)  # fmt: skip

DEFAULT_ZEROS = (
    *(fused(f"default-zero-{element}", Weight(element, zero="default"), MATMUL, quick=element == "uint4")
      for element in ("uint4", "int4", "uint8", "int8", "uint2")),
    fused("default-zero-n-major", Weight(zero="default", n_major=True), TRANSPOSE),
)  # fmt: skip
