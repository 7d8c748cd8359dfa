"""Structures that real quantizers and simplifiers write, as `python -m conformance.tools` finds them, without the tools.

What other modules have is not repeated: blocks and channels behind DequantizeLinear alone, as NNCF, ModelOpt and ONNX
Runtime write them, and weights that are written out.
"""

from typing import Any

from onnx import TensorProto, helper

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.elements import raw_tensor
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from conformance.patterns.bodies import function
from conformance.patterns.pattern import GEMM_T, MATMUL, TRANSPOSE, Pattern, Step, bias, fused, reason

__all__ = ["TOOLS"]

_K, _N = 128, 64
_ENDS: dict[str, Any] = {"x": [ROWS, _K], "y": [ROWS, _N]}
_N_MAJOR, _K_MAJOR = (_N, _K), (_K, _N)
_GEMM = "y = Gemm <transB = 1> (x, w_d, bias)"
_GROUPS = (_K * _N // 32, 32)
_INT4: dict[str, Any] = {"element": "int4", "block": 32, "axis": 1}


def _weight(shape: tuple[int, ...], name: str = "w", **how: Any) -> Step:
    """A weight of int8, with a scale for each row, unless it is stored otherwise; its zero points are all zero."""
    stored: dict[str, Any] = {
        "element": "int8",
        "axis": 0,
        "block": PER_CHANNEL,
        "zero": "default",
        "scale_range": (0.1, 0.2),
    } | how
    return lambda d: d.dequantize(name, shape, **stored)


def _before_last(d: Draft, op: str, at: int, *others: str, **attributes: Any) -> str:
    """Puts a node in front of the last one, behind its input number `at`."""
    last = d.nodes.pop()
    last.input[at] = d.node(op, [last.input[at], *others], f"{last.input[at]}_{op}", **attributes)
    d.nodes.append(last)
    return str(last.input[at])


def _clipped(d: Draft) -> None:
    """Brevitas says what the integers are by a Clip, which changes none of 8 bits."""
    for name, value in (("low", b"\x81"), ("high", b"\x7f")):
        d.constant(raw_tensor(name, TensorProto.INT8, [], value))
    _before_last(d, "Clip", 0, "low", "high")


def _floats(d: Draft) -> None:
    """The weight is stored in float, and quantized in the graph."""
    last = d.nodes[-1]
    (stored,) = (tensor for tensor in d.initializers if tensor.name == last.input[0])
    d.initializers.remove(stored)
    d.floats(stored.name, stored.dims, low=-0.9, high=0.9)
    how = {attribute.name: helper.get_attribute_value(attribute) for attribute in last.attribute}
    _before_last(d, "QuantizeLinear", 0, *last.input[1:], **how)


def _scales_in_integers(d: Draft) -> None:
    """Scales of blocks as integers, with a scale for each channel (AIMET's LPBQ)."""
    last = d.nodes[-1]
    (stored,) = (tensor for tensor in d.initializers if tensor.name == last.input[1])
    d.initializers.remove(stored)
    last.input[1] = d.quantized(f"{stored.name}_integers", "uint8", stored.dims)
    scales = d.floats(f"{stored.name}_scales", stored.dims[:1], low=1e-4, high=2e-4)
    zeros = d.constant(raw_tensor(f"{stored.name}_zeros", TensorProto.UINT8, stored.dims[:1], bytes(stored.dims[0])))
    _before_last(d, "DequantizeLinear", 1, scales, zeros, axis=0)


def _stated(element: str, *shape: int) -> Step:
    """Simplifiers and exporters say what the values in between are."""

    def draw(d: Draft) -> None:
        d.declare(d.nodes[-1].input[0], shape, element)
        d.declare(d.nodes[-1].output[0], shape)

    return draw


def _identity_of_zeros(d: Draft) -> None:
    """torch's scripted exporter stores equal constants once."""
    _before_last(d, "Identity", 2)


def _inputs_too(d: Draft) -> None:
    """Every constant is an input as well."""
    for tensor in d.initializers:
        d.inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def _activation(d: Draft) -> None:
    """x, quantized for the whole tensor."""
    d.scalar("x_s", 0.03)
    d.constant(raw_tensor("x_z", TensorProto.INT8, [], b"\0"))
    d.write("x_q = QuantizeLinear(x, x_s, x_z)  x_d = DequantizeLinear(x_q, x_s, x_z)")


def _int8_bias_behind(d: Draft) -> None:
    """The product is quantized before a bias of int8 is added."""
    d.dequantize("b", [_N], axis=0, block=PER_TENSOR, element="int8", zero="default")
    d.write("p = MatMul(x_d, w_d)  p_q = QuantizeLinear(p, x_s, x_z)  p_d = DequantizeLinear(p_q, x_s, x_z)")
    d.write("y = Add(p_d, b_d)")


def _written_out_blocks(d: Draft) -> None:
    """torchao's blocks, as an axis of their own. Each Reshape has the attribute that torch's exporter gives it."""
    d.quantized("w", "int8", _N_MAJOR)
    d.floats("s", [_N, _K // 32, 1])
    d.ints("blocks", [_N, _K // 32, 32])
    d.ints("whole", _N_MAJOR)
    d.constant(raw_tensor("z", TensorProto.FLOAT, [_N, _K // 32, 1], bytes(4 * _N * _K // 32)))
    d.write("r = Reshape <allowzero = 1> (w, blocks)  c = Cast <to = 1> (r)  m = Sub(c, z)  p = Mul(m, s)")
    d.write("w_d = Reshape <allowzero = 1> (p, whole)")


def _scaled_product(element: str, nodes: str = "p = MatMul(x, c)") -> Step:
    """torchao's Int8WeightOnlyConfig multiplies by the integers, and the product by their scales."""

    def draw(d: Draft) -> None:
        d.quantized("w", element, _K_MAJOR)
        d.floats("s", [_N])
        d.write(f"c = Cast <to = 1> (w)  {nodes}  h = Mul(p, s)  y = Add(h, bias)")

    return draw


def _whole(d: Draft) -> None:
    """Groups as rows, made a matrix."""
    d.ints("shape", _N_MAJOR)
    d.write("r = Reshape(w_d, shape)  t = Transpose <perm = [1, 0]> (r)  y = MatMul(x, t)")


def _grouped(d: Draft) -> None:
    """onnx-quantize takes the blocks apart in a function, which is called with scales and zero points of [blocks, 1]."""
    blocks = _K * _N // 32
    d.quantized("w", "uint4", _K_MAJOR)
    d.floats("w_s", [blocks, 1])
    d.quantized("w_z", "uint4", [blocks, 1])
    d.ints("shape", [_N, _K])
    d.write("y = local.Grouped(x, w, w_s, w_z, shape)")


_GROUPED = """
    i = Cast <to = 3> (w)  i_z = Cast <to = 3> (z)  i_t = Transpose <perm = [1, 0]> (i)
    rows = Constant <value_ints = [-1, 32]> ()  b = Reshape(i_t, rows)
    d = DequantizeLinear <block_size = 32> (b, s, i_z)  j = Reshape(d, shape)
    t = Transpose <perm = [1, 0]> (j)  out = MatMul(a, t)
"""


def _conv(name: str, *steps: Step, nodes: str = "y = Conv <pads = [1, 1, 1, 1]> (x, w_d)", **facts: Any) -> Pattern:
    return reason(name, _weight((16, 8, 3, 3)), *steps, nodes, x=[ROWS, 8, 6, 6], y=[ROWS, 16, 6, 6], **facts)


TOOLS = (
    # AIMET's to_onnx_qdq, torch's fake quantization
    fused("float-qdq", _weight(_N_MAJOR), _floats, bias(_N), _GEMM, **_ENDS, quick=True),
    fused("float-qdq-matmul", _weight(_N_MAJOR), _floats, TRANSPOSE, **_ENDS),
    fused("float-qdq-k-major", _weight(_K_MAJOR, axis=1), _floats, MATMUL, **_ENDS),
    fused("float-qdq-tensor", _weight(_N_MAJOR, block=PER_TENSOR), _floats, GEMM_T, **_ENDS),
    fused("float-qdq-int4", _weight(_N_MAJOR, element="int4"), _floats, GEMM_T, **_ENDS),
    fused("float-qdq-blocks", _weight(_N_MAJOR, **_INT4), _floats, GEMM_T, **_ENDS),
    fused("float-qdq-blocks-k-major", _weight(_K_MAJOR, **{**_INT4, "axis": 0}), _floats, MATMUL, **_ENDS),
    fused("float-qdq-table", _weight((512, _K)), _floats, "y = Gather(w_d, x)", x=[2, 3], x_kind="int64", y=[2, 3, _K]),
    fused("float-qdq-identity-zeros", _weight(_N_MAJOR), _floats, _identity_of_zeros, TRANSPOSE, **_ENDS),
    fused("float-qdq-stated", _weight(_N_MAJOR), _floats, _stated("int8", *_N_MAJOR), TRANSPOSE, **_ENDS),
    reason("float-qdq-static", _weight(_N_MAJOR), _floats, _activation, "h = Gemm <transB = 1> (x_d, w_d)  y = Identity(h)",
           **_ENDS),
    _conv("float-qdq-conv", _floats),
    # AIMET's LPBQ
    fused("lpbq", _weight(_N_MAJOR, **_INT4), _scales_in_integers, bias(_N), _GEMM, **_ENDS, quick=True),
    fused("lpbq-stated", _weight(_N_MAJOR, **_INT4), _scales_in_integers, _stated("int4", *_N_MAJOR), GEMM_T, **_ENDS),
    fused("lpbq-matmul", _weight(_N_MAJOR, **_INT4), _scales_in_integers, TRANSPOSE, **_ENDS),
    # Brevitas
    fused("clip", _weight(_N_MAJOR), _clipped, bias(_N), _GEMM, **_ENDS, quick=True, opset=13),
    fused("clip-matmul", _weight(_N_MAJOR, block=PER_TENSOR), _clipped, TRANSPOSE, **_ENDS, opset=13),
    fused("clip-float-qdq", _weight(_N_MAJOR), _floats, _clipped, GEMM_T, **_ENDS),
    fused("clip-float-qdq-stated", _weight(_N_MAJOR), _floats, _clipped, _stated("int8", *_N_MAJOR), GEMM_T, **_ENDS),
    reason("clip-float-qdq-inputs", _weight(_N_MAJOR), _floats, _clipped, _inputs_too, GEMM_T, **_ENDS),
    reason("clip-static", _weight(_N_MAJOR), _clipped, _activation,
           "t = Transpose <perm = [1, 0]> (w_d)  h = MatMul(x_d, t)  y = Identity(h)", **_ENDS, opset=13),
    _conv("clip-conv", _clipped, opset=13),
    # torchao, through torch's exporter
    fused("written-out-with-allowzero", _written_out_blocks, bias(_N), _GEMM, **_ENDS),
    fused("scaled-product", bias(_N), _scaled_product("int8"), **_ENDS, quick=True),
    fused("scaled-product-int4", bias(_N), _scaled_product("int4"), **_ENDS),
    fused("scaled-product-zero-points", bias(_N), lambda d: d.quantized("z", "uint8", [_N]),
          _scaled_product("uint8", "f = Cast <to = 1> (z)  m = Sub(c, f)  p = MatMul(x, m)"), **_ENDS),
    fused("scaled-product-int32", bias(_N), lambda d: d.quantized("z", "uint8", []),
          lambda d: (d.quantized("w", "uint8", _K_MAJOR), d.floats("s", [_N])), "i = Cast <to = 6> (w)"
          "  j = Cast <to = 6> (z)  m = Sub(i, j)  c = Cast <to = 1> (m)  p = MatMul(x, c)  h = Mul(p, s)"
          "  y = Add(h, bias)", **_ENDS),
    fused("scaled-table", lambda d: (d.quantized("w", "int8", (4096, _K)), d.floats("s", (4096, 1))),
          "c = Cast <to = 1> (w)  g = Gather(c, x)  f = Gather(s, x)  y = Mul(g, f)", x=[2, 3], x_kind="int64",
          y=[2, 3, _K]),
    # NNCF
    fused("axis-from-the-end", _weight(_N_MAJOR, axis=-2), GEMM_T, **_ENDS),
    # ModelOpt's AWQ
    fused("scaled-activation", lambda d: d.floats("a", [1, _K], low=0.5, high=2), _weight(_N_MAJOR, **_INT4),
          "h = Mul(x, a)  t = Transpose <perm = [1, 0]> (w_d)  y = MatMul(h, t)", **_ENDS),
    # onnx-quantize
    fused("blocks-in-a-function", function("Grouped (a, w, s, z, shape)", _GROUPED), _grouped, **_ENDS),
    # HQQ, and others that make rows of the groups
    fused("groups-as-rows", _weight(_GROUPS, element="uint4", block=32, axis=1, zero="random"), _whole, **_ENDS, quick=True),
    fused("groups-as-rows-channel", _weight(_GROUPS, element="int4", axis=0), _whole, **_ENDS),
    fused("groups-as-rows-gemm", _weight(_GROUPS, element="int4", axis=0), bias(_N), lambda d: d.ints("shape", _N_MAJOR),
          "r = Reshape(w_d, shape)  y = Gemm <transB = 1> (x, r, bias)", **_ENDS),
    fused("groups-as-rows-written-out", lambda d: (d.quantized("w", "uint4", _GROUPS), d.floats("s", [_GROUPS[0], 1]),
          d.quantized("z", "uint4", [_GROUPS[0], 1])), "c = Cast <to = 1> (w)  f = Cast <to = 1> (z)  m = Sub(c, f)"
          "  w_d = Mul(m, s)", _whole, **_ENDS),
    fused("groups-as-rows-table", _weight((512 * 4, 32), element="uint4", block=32, axis=1, zero="random"),
          lambda d: d.ints("shape", [512, _K]), "r = Reshape(w_d, shape)  y = Gather(r, x)", x=[2, 3], x_kind="int64",
          y=[2, 3, _K]),
    # esp-ppq
    reason("static-int8-bias", _activation, _weight(_K_MAJOR, axis=1), _int8_bias_behind, **_ENDS),
)  # fmt: skip
"""Where the forms of a tool are `reason` or `unfused`, ONNX Runtime folds them or has a kernel on integers, or they are not
followed yet."""
