"""Valid models to start from."""

from functools import cache

from conformance.drawing.draft import Draft
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from conformance.patterns.catalogue import PATTERNS
from conformance.patterns.pattern import either

__all__ = ["seed_models"]


def _subgraphs(draft: Draft) -> None:
    """A weight outside that two branches read, one of which has another inside."""
    draft.input("c", [], "bool")
    draft.weight(Weight(k=32, n=16), "outer")
    one, other = Draft(parent=draft), Draft(parent=draft)
    one.write("then_h = MatMul(x, outer_d)  then_y = Identity(then_h)")
    other.write("else_h = MatMul(x, outer_d)")
    other.weight(Weight(k=16, n=16, block=PER_CHANNEL, element="int8", zero="none"), "inner")
    other.write("else_p = MatMul(else_h, inner_d)  else_y = Identity(else_p)")
    one.output("then_y", ["m", 16])
    other.output("else_y", ["m", 16])
    draft.node("If", ["c"], "y", then_branch=one.graph("then"), else_branch=other.graph("else"))
    draft.quantized("t", "uint8", [8])
    draft.floats("t_s", [])
    draft.write("t_d = DequantizeLinear(t, t_s)")
    draft.output("t_d", [8])
    draft.weight(Weight(k=32, n=16, block=PER_TENSOR), "unread")


# What the pattern table has no need of: ONNX Runtime's own operator and a weight beside it; a weight behind many views.
_MORE = (
    either("fused already", lambda d: d.quantized("b", "uint8", [16, 1, 16]), lambda d: d.floats("s", [16]),
           "h = com.microsoft.MatMulNBits <K = 32, N = 16, bits = 4, block_size = 32> (x, b, s)",
           Weight(k=16, n=8, block=16), "y = MatMul(h, w_d)", x=["m", 32]),
    either("views", Weight(k=32, n=16, n_major=True),
           lambda d: d.ints("axes", [0]), lambda d: d.ints("shape", [0, -1]), lambda d: d.floats("bias", [16]),
           """v0 = Unsqueeze(w_d, axes)  v1 = Transpose <perm = [0, 2, 1]> (v0)  v2 = Squeeze(v1, axes)
              v3 = Reshape(v2, shape)  v4 = Flatten(v3)  v5 = Identity(v4)  v6 = Cast <to = 1> (v5)
              y = Gemm <alpha = 0.5, beta = 2.0> (x, v6, bias)"""),
    either("experts looked up", lambda d: d.input("e", [1], "int64"), lambda d: d.ints("first", [0]),
           lambda d: d.dequantize("w", (12, 32, 8), axis=1),
           "g = Gather <axis = 0> (w_d, e)  s = Squeeze(g, first)  y = MatMul(x, s)", x=["m", 32], y=["m", 8]),
    either("experts in rows looked up", lambda d: d.input("e", [2], "int64"),
           lambda d: d.dequantize("w", (12, 8, 32), axis=2),
           "g = Gather <axis = 0> (w_d, e)  t = Transpose <perm = [0, 2, 1]> (g)  y = MatMul(x, t)", x=[2, "m", 32],
           y=[2, "m", 8]),
    either("all experts", lambda d: d.dequantize("w", (3, 32, 8), axis=1), "y = MatMul(x, w_d)", x=[3, "m", 32],
           y=[3, "m", 8]),
    either("a mixture of experts", lambda d: d.input("p", ["m", 2]), lambda d: d.dequantize("w", (2, 32, 32), axis=2),
           lambda d: d.dequantize("v", (2, 32, 32), axis=2), lambda d: d.floats("b", [2, 32]),
           "y = com.microsoft.MoE <normalize_routing_weights = 1, k = 2> (x, p, w_d, b, v_d)", x=["m", 32], y=["m", 32]),
    either("ways", Weight(k=32, n=16),
           lambda d: d.ints("b", [2]), lambda d: d.ints("e", [14]), lambda d: d.ints("axis", [1]),
           lambda d: d.ints("i", [3, 1, 2]), lambda d: d.floats("f", [32, 1]), lambda d: d.ints("two", [2, 32, 15]),
           """v0, v1 = Split <axis = 1, num_outputs = 2> (w_d)  v2 = Concat <axis = 1> (v0, v1)  v3 = Slice(v2, b, e, axis)
              v4 = Gather <axis = 1> (v3, i)  v5 = Mul(v4, f)  v6 = Concat <axis = 1> (v3, v4)  v7 = Expand(v6, two)
              y0 = Einsum <equation = "mk,kn->mn"> (x, v5)  y = MatMul(x, v6)  y1 = MatMul(h, v7)""",
           lambda d: d.input("h", [2, "m", 32]), y=["m", 15]),
    either("subgraphs", _subgraphs, x=["m", 32], y=["m", 16]),
)  # fmt: skip


@cache
def seed_models() -> tuple[bytes, ...]:
    """Small valid models, one at least of every kind in the pattern table, and some that it has no need of."""
    small = [pattern.build() for pattern in PATTERNS]
    chosen = [model for model in small if model.ByteSize() < 1000 or model.graph.node[0].op_type in ("If", "Loop", "Scan")]
    chosen += [pattern.build() for pattern in (*PATTERNS, *_MORE) if pattern.group == 3]
    stored = dict.fromkeys(bytes(model.SerializeToString()) for model in chosen)
    return tuple(model for model in stored if len(model) < 6000)
