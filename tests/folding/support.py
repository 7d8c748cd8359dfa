"""Constants that nodes compute, by ONNX Runtime's own kernels and by this package."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper

from conformance.drawing.elements import ELEMENTS, raw_quantized
from conformance.sessions import quiet_options
from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.folding.boxes import whole
from ort_qdq_plugin.folding.computed import as_tensor
from ort_qdq_plugin.folding.expression import Expression
from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.model.graph import model_scope
from ort_qdq_plugin.report.weights import Reason
from tests.fusion.support import locate
from tests.support import CPU, Array

__all__ = [
    "FLOATS", "NUMPY", "ODD", "SMALL", "all_elements", "by_onnx_runtime", "check_folding", "check_left", "code_of",
    "constant", "expression_of", "folding", "refused_by_onnx_runtime", "same_bits", "stored_bytes", "values_of",
    "whole_model",
]  # fmt: skip

NUMPY = {
    "float": "float32", "double": "float64", "float16": "float16",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
"""Types that NumPy has, by their names in ONNX."""
SMALL = ("int4", "uint4", "int2", "uint2")
"""Those of less than a byte, which are int8 or uint8 in NumPy."""


FLOATS = ("float", "double", "float16")
# Half-way values, infinities, subnormal numbers of each type, the largest ones, and what is next to them.
ODD = (
    *(0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 127.5, 128.5, -128.5, 1e-40, 6e-8, 3e-5, 65504.0, 65519.0, 1e-300),
    *(np.inf, -np.inf),
)


def code_of(kind: str) -> int:
    return int(TensorProto.DataType.Value(kind.upper()))


def values_of(kind: str, shape: Any, seed: int, odd: bool = False) -> Array:
    """Drawn values of a type; `odd`: some of floating-point types are from `ODD`."""
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        if kind in FLOATS:
            values = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3)
            if odd:
                values = np.where(rng.random(shape) < 0.5, rng.choice(ODD, shape), values)
            return np.asarray(values).astype(NUMPY[kind])
        bits = int(kind.lstrip("uint"))
        low, high = (0, (1 << bits) - 1) if kind.startswith("u") else (-(1 << bits - 1), (1 << bits - 1) - 1)
        wide = rng.integers(low, high, shape, np.uint64 if bits == 64 and low == 0 else np.int64, endpoint=True)
        return np.asarray(wide).astype(NUMPY.get(kind, "int8" if low else "uint8"))


def constant(name: str, values: Array, kind: str) -> TensorProto:
    """A tensor of these values."""
    is_small = kind in SMALL
    raw = raw_quantized(values, ELEMENTS[kind].bits) if is_small else values.astype(NUMPY.get(kind, kind)).tobytes()
    return helper.make_tensor(name, code_of(kind), values.shape, raw, raw=True)


def folding(nodes: Sequence[NodeProto], tensors: Mapping[str, tuple[str, Any]], opset: int = 25) -> ModelProto:
    """A model of nodes that compute `y` from constants: name -> type and values."""
    made = [constant(name, np.asarray(values), kind) for name, (kind, values) in tensors.items()]
    return whole_model(nodes, made, opset)


def whole_model(nodes: Sequence[NodeProto], tensors: Sequence[TensorProto], opset: int = 25) -> ModelProto:
    graph = helper.make_graph(nodes, "constants", [], [helper.make_empty_tensor_value_info("y")], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=13)


def expression_of(model: ModelProto, name: str = "y") -> Expression | Reason:
    """What this package makes of it; or the reason why nothing."""
    try:
        return Constants(locate).expression(model_scope(model), name)
    except NotFusable as refusal:
        return refusal.reason


def all_elements(expression: Expression) -> Array:
    return expression.values(whole(expression.shape))


def stored_bytes(expression: Expression) -> Array:
    """The bytes of the tensor that the expression is."""
    return as_tensor(expression, "y").read()


def by_onnx_runtime(model: ModelProto, kind: int) -> Array:
    """What ONNX Runtime makes of it, each node by its kernel. `kind`: the type of `y`; small ones come as int8 or uint8."""
    copy = ModelProto()
    copy.CopyFrom(model)
    name, target = "y", {code_of(small): code_of("int8" if small.startswith("i") else "uint8") for small in SMALL}.get(kind)
    if target is not None:
        copy.graph.node.append(helper.make_node("Cast", ["y"], ["wide"], to=target))
        name = "wide"
    del copy.graph.output[:]
    copy.graph.output.append(helper.make_tensor_value_info(name, target or kind, None))
    options = quiet_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    (result,) = ort.InferenceSession(copy.SerializeToString(), options, CPU).run(None, {})
    values: Array = result
    return values


def refused_by_onnx_runtime(model: ModelProto, kind: int) -> bool:
    try:
        by_onnx_runtime(model, kind)
    except Exception:  # of many types
        return True
    return False


COMPARE = ("Clip", "Max", "Min")
"""Of zeros of both signs, they take either."""


def same_bits(ours: Array, theirs: Array) -> None:
    """Equal in type, shape and every bit, but for the sign and payload of what is no number."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if ours.dtype.kind == "f":
        is_none = np.isnan(theirs)
        np.testing.assert_array_equal(np.isnan(ours), is_none)
        ours, theirs = (np.ascontiguousarray(one[~is_none]).view(f"u{ours.itemsize}") for one in (ours, theirs))
    np.testing.assert_array_equal(ours, theirs)


def check_folding(nodes: list[NodeProto], tensors: dict[str, tuple[str, Any]], opset: int = 25) -> Expression:
    """`y` is what ONNX Runtime makes of it."""
    model = folding(nodes, tensors, opset)
    expression = expression_of(model)
    assert not isinstance(expression, Reason), expression
    ours, theirs = all_elements(expression), by_onnx_runtime(model, expression.data_type)
    assert ours.shape == expression.shape
    if ours.dtype.kind == "f" and any(node.op_type in COMPARE for node in nodes):
        ours, theirs = (np.where(one == 0, one.dtype.type(0), one) for one in (ours, theirs))
    same_bits(ours, theirs)
    return expression


def check_left(nodes: list[NodeProto], tensors: dict[str, tuple[str, Any]], opset: int = 25) -> None:
    assert expression_of(folding(nodes, tensors, opset)) is Reason.COMPUTED
