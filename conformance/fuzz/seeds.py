"""Valid models to start from."""

from __future__ import annotations

from functools import cache

import onnx
from onnx import TensorProto, helper

from conformance.drawing.draft import Draft
from conformance.drawing.elements import MS
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR, Weight
from conformance.patterns.catalogue import PATTERNS

__all__ = ["seed_models"]


@cache
def seed_models() -> tuple[bytes, ...]:
    """Small valid models, one at least of every kind in the pattern table, and some that it has no need of."""
    small = [pattern.build() for pattern in PATTERNS]
    chosen = [model for model in small if model.ByteSize() < 1000 or model.graph.node[0].op_type in ("If", "Loop", "Scan")]
    chosen += [pattern.build() for pattern in PATTERNS if pattern.group == 3]
    chosen += [_fused_already(), _all_kinds_of_views(), _with_subgraphs()]
    stored = dict.fromkeys(bytes(model.SerializeToString()) for model in chosen)
    return tuple(model for model in stored if len(model) < 6000)


def _fused_already() -> onnx.ModelProto:
    """ONNX Runtime's own operator, and a weight beside it that is not fused."""
    draft = Draft("fused already")
    draft.input("x", ["m", 32])
    draft.quantized("b", "uint8", [16, 1, 16])
    draft.floats("s", [16])
    draft.node("MatMulNBits", ["x", "b", "s"], "h", domain=MS, K=32, N=16, bits=4, block_size=32)
    draft.output(draft.node("MatMul", ["h", draft.weight(Weight(k=16, n=8, block=16))], "y"), ["m", 8])
    return draft.model()


def _all_kinds_of_views() -> onnx.ModelProto:
    """A weight behind one view after another."""
    draft = Draft("views")
    draft.input("x", ["m", 32])
    value = draft.weight(Weight(k=32, n=16, n_major=True))
    value = draft.node("Unsqueeze", [value, draft.ints("axes", [0])], "v0")
    value = draft.node("Transpose", [value], "v1", perm=[0, 2, 1])
    value = draft.node("Squeeze", [value, "axes"], "v2")
    value = draft.node("Reshape", [value, draft.ints("shape", [0, -1])], "v3")
    value = draft.node("Flatten", [value], "v4")
    value = draft.node("Cast", [draft.node("Identity", [value], "v5")], "v6", to=TensorProto.FLOAT)
    draft.output(draft.node("Gemm", ["x", value, draft.floats("bias", [16])], "y", alpha=0.5, beta=2.0), ["m", 16])
    return draft.model()


def _with_subgraphs() -> onnx.ModelProto:
    """A weight outside that two branches read, one of which has another inside."""
    draft = Draft("subgraphs")
    draft.input("x", ["m", 32])
    draft.inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    outer = draft.weight(Weight(k=32, n=16), "outer")
    branches = []
    for name in ("then", "else"):
        branch = Draft(name, parent=draft)
        value = branch.node("MatMul", ["x", outer], f"{name}_h")
        if name == "else":
            inner = branch.weight(Weight(k=16, n=16, block=PER_CHANNEL, element="int8", zero="none"), "inner")
            value = branch.node("MatMul", [value, inner], "else_p")
        branch.output(branch.node("Identity", [value], f"{name}_y"), ["m", 16])
        branches.append(branch.graph(name))
    draft.node("If", ["c"], "y", then_branch=branches[0], else_branch=branches[1])
    draft.output("y", ["m", 16])
    draft.node("DequantizeLinear", [draft.quantized("t", "uint8", [8]), draft.floats("t_s", [])], "t_d")
    draft.output("t_d", [8])
    draft.weight(Weight(k=32, n=16, block=PER_TENSOR), "unread")
    return draft.model()
