"""Gemm and FusedMatMul with their attributes and biases, weights with several readers, and weights on the left."""

from collections.abc import Iterator

from onnx import TensorProto

from conformance.drawing.draft import ROWS, Draft
from conformance.drawing.weight import PER_TENSOR, Weight
from conformance.patterns.pattern import MATMUL, Pattern, bias, either, fused

__all__ = ["GEMMS", "LEFT", "SHARED"]

_SQUARE, _SQUARE_N_MAJOR = Weight(n=128), Weight(n=128, n_major=True)
_SECOND_DQ = "h = MatMul(x, w_d)  v_d = DequantizeLinear <axis = 0, block_size = 32>"


def _duplicate_constants(d: Draft) -> None:
    for tensor in list(d.initializers):
        twin = TensorProto()
        twin.CopyFrom(tensor)
        twin.name += "2"
        d.initializers.append(twin)


SHARED = (
    fused("shared-dq", "one DQ, two MatMuls",
          _SQUARE, "h = MatMul(x, w_d)  y = MatMul(h, w_d)", fusions=2, quick=True),
    fused("shared-transpose", "one N-major DQ and one Transpose, two MatMuls",
          _SQUARE_N_MAJOR, "t = Transpose <perm = [1, 0]> (w_d)  h = MatMul(x, t)  y = MatMul(h, t)", fusions=2),
    fused("shared-gemm-and-matmul", "one N-major DQ: Gemm(transB=1) and Transpose -> MatMul", _SQUARE_N_MAJOR,
          "t = Transpose <perm = [1, 0]> (w_d)  h = MatMul(x, t)  y = Gemm <transB = 1> (h, w_d)", fusions=2),
    fused("two-dqs-one-weight", "one weight, two DQs",
          _SQUARE, f"{_SECOND_DQ} (w, w_s, w_z)  y = MatMul(h, v_d)", fusions=2, quick=True),
    fused("two-scales-one-weight", "one weight under two sets of scales",
          _SQUARE, lambda d: d.floats("v_s", [4, 128]), f"{_SECOND_DQ} (w, v_s)  y = MatMul(h, v_d)", fusions=2),
    fused("shared-with-add", "a DQ that a MatMul and an Add consume: the MatMul is fused, the DQ stays",
          lambda d: d.input("r", [128, 64]), Weight(), f"{MATMUL}  y2 = Add(r, w_d)", lambda d: d.output("y2", [128, 64]),
          stays=1),
    fused("weight-also-read", "the stored weight has another reader: it must not be dropped",
          Weight("uint8"), f"{MATMUL}  y2 = Cast <to = 1> (w)", lambda d: d.output("y2", [128, 64]), quick=True),
    fused("duplicate-weights", "two weights with the same bytes",
          _SQUARE, _duplicate_constants, f"{_SECOND_DQ} (w2, w_s2, w_z2)  y = MatMul(h, v_d)", fusions=2),
)  # fmt: skip


def _gemms(trans_b: bool) -> Iterator[Pattern]:
    """A Gemm with each attribute, and with a bias of each shape."""
    for name, attributes, shape in (
        ("alpha", "transA = 0, alpha = 0.5, beta = 1.0", None),
        ("beta", "transA = 0, alpha = 1.0, beta = 2.0", (64,)),
        ("alpha-beta", "transA = 0, alpha = 0.3, beta = 0.7", (64,)),
        ("beta-0", "transA = 0, alpha = 1.0, beta = 0.0", (64,)),
        ("transA", "transA = 1, alpha = 1.0, beta = 1.0", (64,)),
        ("bias-1xN", "transA = 0, alpha = 1.0, beta = 1.0", (1, 64)),
        ("bias-scalar", "transA = 0, alpha = 1.0, beta = 1.0", ()),
        ("bias-1", "transA = 0, alpha = 1.0, beta = 1.0", (1,)),
    ):
        inputs, constants = ("x, w_d", []) if shape is None else ("x, w_d, bias", [bias(*shape)])
        yield (either if name == "transA" else fused)(
            f"gemm-{name}{'-transB' if trans_b else ''}", "Gemm's attributes and biases",
            Weight(n_major=trans_b), *constants, f"y = Gemm <transB = {int(trans_b)}, {attributes}> ({inputs})",
            x=(128, ROWS) if name == "transA" else None, quick=name in ("alpha-beta", "bias-1xN"))  # fmt: skip


GEMMS = (
    *_gemms(trans_b=False),
    *_gemms(trans_b=True),
    fused("gemm-bias-column", "a bias with a scale per row is no [N] bias",
          Weight(), bias(5, 1), "y = Gemm(x, w_d, bias)", x=[5, 128], y=[5, 64]),
    fused("gemm-bias-input", "a bias that is computed",
          lambda d: d.input("c", [64]), Weight(n_major=True), "y = Gemm <transB = 1> (x, w_d, c)"),
    fused("gemm-bias-dq", "a bias that is dequantized, per tensor, from int32",
          lambda d: d.dequantize("b", [64], axis=0, block=PER_TENSOR, element="int32", zero="none"), Weight(n_major=True),
          "y = Gemm <transB = 1> (x, w_d, b_d)", quick=True),
    fused("matmul-add-bias-dq", "a bias that is dequantized, per tensor, from int8, behind a MatMul",
          Weight(), "h = MatMul(x, w_d)", lambda d: d.dequantize("b", [64], axis=0, block=PER_TENSOR, element="int8"),
          "y = Add(h, b_d)"),
    either("fusedmatmul-alpha", "FusedMatMul with alpha",
           Weight(n_major=True), "y = com.microsoft.FusedMatMul <transB = 1, alpha = 0.25> (x, w_d)"),
    either("fusedmatmul-trans-a", "FusedMatMul with transA",
           Weight(), "y = com.microsoft.FusedMatMul <transA = 1> (x, w_d)", x=[128, ROWS]),
)  # fmt: skip

LEFT = (
    either("left-static", "W x, static",
           lambda d: d.dequantize("w", [64, 128], axis=1), "y = MatMul(w_d, x)", x=[128, 6], y=[64, 6], quick=True),
    either("left-dynamic", "W x, dynamic",
           lambda d: d.dequantize("w", [64, 128], axis=1), "y = MatMul(w_d, x)", x=[128, ROWS], y=[64, ROWS]),
    either("left-gemm", "Gemm with the weight on the left, transposed",
           lambda d: d.dequantize("w", [128, 64], axis=0), "y = Gemm <transA = 1> (w_d, x)", x=[128, 6], y=[64, 6]),
    fused("left-gemm-bias", "Gemm with the weight on the left and a bias for each column",
          lambda d: d.dequantize("w", [64, 128], axis=1), lambda d: d.floats("c", [6]), "y = Gemm(w_d, x, c)",
          x=[128, 6], y=[64, 6]),
    either("batched", "[4, K, N], one weight a batch",
           lambda d: d.dequantize("w", [4, 128, 64], axis=1), MATMUL, x=[4, ROWS, 128], y=[4, ROWS, 64], quick=True),
    either("batched-transpose", "[4, N, K], one weight a batch",
           lambda d: d.dequantize("w", [4, 64, 128], axis=2), "t = Transpose <perm = [0, 2, 1]> (w_d)  y = MatMul(x, t)",
           x=[4, ROWS, 128], y=[4, ROWS, 64]),
)  # fmt: skip
