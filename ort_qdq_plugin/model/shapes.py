"""The shapes of values: those that a model states, and those that follow from them.

ONNX's own shape inference answers everything, but importing it takes longer than loading a small model. So the operators
that surround matrix products are followed here, and ONNX's inference is asked only where that does not settle the question.

Format facts: broadcasting and the operators named below, of the ONNX specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.elements import INT64
from ort_qdq_plugin.model.messages import attribute, int_attribute, is_standard, onnx_library
from ort_qdq_plugin.model.tensors import MAX_RANK, Locate

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["Shape", "allows_zero", "followed_shapes", "inferred_graph", "reshaped_by", "stated_shapes", "whole_numbers"]

Shape = tuple["int | None", ...]
"""Dimensions; None for one that is not fixed."""

# A dimension that ONNX's inference may know, or not. It never leaves this module.
_UNKNOWN = -1

_SAME_SHAPE = {
    "Abs", "Cast", "Ceil", "Clip", "Cos", "DequantizeLinear", "Elu", "Erf", "Exp", "Floor", "Gelu", "Identity",
    "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "Neg", "Not", "QuantizeLinear", "Reciprocal",
    "Relu", "RMSNormalization", "Sigmoid", "Sin", "Softmax", "Softplus", "Sqrt", "Tanh",
}  # fmt: skip
_BROADCAST = {
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul", "Or", "Pow",
    "Sub", "Where",
}  # fmt: skip


def stated_shapes(graph: GraphProto) -> dict[str, Shape]:
    """Name -> shape, for the values whose shapes `graph` states."""
    return {
        value.name: tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim)
        # An input can be an output too: what the input says counts, as for ONNX Runtime.
        for values in (graph.output, graph.value_info, graph.input)
        for value in values
        # Asking for a message that is not there takes memory for good.
        if value.HasField("type") and value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape")
    }


def inferred_graph(model: ModelProto) -> GraphProto | None:
    """The model's graph with every shape that ONNX's inference finds; None for models that it does not understand."""
    with suppress(Exception):  # of many types
        graph: GraphProto = onnx_library("onnx.shape_inference").infer_shapes(model).graph
        return graph
    return None


def followed_shapes(graph: GraphProto, constant: Callable[[str], TensorProto | None]) -> dict[str, Shape]:
    """Follow shapes from the inputs of a main graph through its nodes.

    Returns:
        Name -> shape, only where ONNX's inference would say the same.
    """
    inputs = {value.name for value in graph.input}
    stated = stated_shapes(graph)
    known: dict[str, Shape] = {name: shape for name, shape in stated.items() if name in inputs}
    for tensor in graph.initializer:
        if len(tensor.dims) <= MAX_RANK:
            known.setdefault(tensor.name, tuple(tensor.dims))
    for node in graph.node:
        shape = _result(node, known, constant) if node.output else None
        for at, name in enumerate(node.output):
            merged = _merged(shape if at == 0 else None, stated.get(name))
            if merged is not None and name:
                known[name] = merged
    return {name: shape for name, shape in known.items() if _UNKNOWN not in shape}


def _merged(followed: Shape | None, stated: Shape | None) -> Shape | None:
    """What is known of a value whose shape may be stated as well."""
    if stated is None:
        return followed
    if followed is None or len(followed) != len(stated):
        return tuple(_UNKNOWN if dim is None else dim for dim in stated)
    return tuple(other if dim is None else dim for dim, other in zip(stated, followed, strict=True))


def _result(node: NodeProto, known: dict[str, Shape], constant: Callable[[str], TensorProto | None]) -> Shape | None:
    """The shape of a node's first output."""
    kind = node.op_type
    if not is_standard(node):
        return None
    if kind == "Constant":
        tensor = constant(node.output[0])
        return tuple(tensor.dims) if tensor is not None and len(tensor.dims) <= MAX_RANK else None
    shapes = [known.get(name) for name in node.input]
    if not shapes or shapes[0] is None:
        return None
    first = shapes[0]
    if kind in _SAME_SHAPE:
        return first
    if kind == "Transpose":
        perm = attribute(node, "perm")
        order = list(perm.ints) if perm is not None else list(reversed(range(len(first))))
        return tuple(first[axis] for axis in order) if sorted(order) == list(range(len(first))) else None
    if kind in ("Squeeze", "Unsqueeze", "Reshape"):
        return reshaped_by(node, first, lambda name: whole_numbers(constant(name)) or None)
    if kind == "Shape":
        return (len(first),) if not node.attribute else None
    if kind == "Concat":
        return _concatenated(shapes, attribute(node, "axis"))
    if kind == "Slice":
        # What is computed at run time leaves every dimension open.
        is_fixed = all(constant(name) is not None for name in node.input[1:] if name)
        return (_UNKNOWN if is_fixed else None,) * len(first)
    second = shapes[1] if len(shapes) > 1 else None
    if kind in _BROADCAST:
        # Attributes are those of the first opsets, which broadcast in another way.
        operands = [shape for shape in shapes if shape is not None]
        return _broadcast(operands) if len(operands) == len(shapes) and not node.attribute else None
    if second is None:
        return None
    if kind == "MatMul" and min(len(first), len(second)) >= 2:
        return (*_broadcast([first[:-2], second[:-2]]), first[-2], second[-1])
    if kind == "Gemm" and len(first) == len(second) == 2:
        return first[bool(int_attribute(node, "transA"))], second[not int_attribute(node, "transB")]
    if kind == "Gather":
        axis = int_attribute(node, "axis")
        axis += len(first) if axis < 0 else 0
        return (*first[:axis], *second, *first[axis + 1 :]) if 0 <= axis < len(first) else None
    return None


def reshaped_by(node: NodeProto, shape: Shape, numbers: Callable[[str], list[int] | None]) -> Shape | None:
    """The shape after a Reshape, Squeeze or Unsqueeze with axes, whose first input has the given one.

    `numbers` gives the elements of a constant that holds a shape or axes, or None. The result is None where the node's shape
    or axes are not constant, or do not fit.
    """
    # Squeeze's and Unsqueeze's axes are an attribute before opset 13, an input since.
    given = attribute(node, "axes")
    values = list(given.ints) if given is not None else numbers(node.input[1]) if len(node.input) > 1 else None
    if values is None:
        return None
    if node.op_type == "Reshape":
        return None if allows_zero(node) else _reshaped(shape, values)
    rank = len(shape) + (len(values) if node.op_type == "Unsqueeze" else 0)
    axes, dims = _from_the_front(values, rank), iter(shape)
    if axes is None or rank > MAX_RANK:
        return None
    if node.op_type == "Squeeze":
        return tuple(dim for at, dim in enumerate(shape) if at not in axes)
    return tuple(1 if at in axes else next(dims) for at in range(rank))


def allows_zero(node: NodeProto) -> bool:
    """Whether a 0 in a Reshape's shape stands for itself, not for what the value has there."""
    return int_attribute(node, "allowzero") != 0


def _from_the_front(axes: Sequence[int], rank: int) -> set[int] | None:
    """These axes of a value, counted from the front; None if they are not all there, or one is there twice."""
    counted = {axis + rank if axis < 0 else axis for axis in axes}
    return counted if len(counted) == len(axes) and all(0 <= axis < rank for axis in counted) else None


def _concatenated(shapes: Sequence[Shape | None], axis: AttributeProto | None) -> Shape | None:
    known = [shape for shape in shapes if shape is not None]
    rank = len(known[0])
    if axis is None or len(known) < len(shapes) or any(len(shape) != rank for shape in known) or not -rank <= axis.i < rank:
        return None
    along = [shape[axis.i] for shape in known]
    fixed = [dim for dim in along if dim is not None and dim != _UNKNOWN]
    total = sum(fixed) if len(fixed) == len(along) else _UNKNOWN if _UNKNOWN in along else None
    dims: list[int | None] = [_either(column) for column in zip(*known, strict=True)]
    dims[axis.i] = total
    return tuple(dims)


def _either(dims: Sequence[int | None]) -> int | None:
    """What is known of a dimension that several values share."""
    return next((dim for dim in dims if dim is not None and dim != _UNKNOWN), _UNKNOWN if _UNKNOWN in dims else None)


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape that these give together by multidirectional broadcasting."""
    rank = max(map(len, shapes), default=0)
    columns = zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True)
    return tuple(_either([dim for dim in dims if dim != 1] or [1]) for dims in columns)


def _reshaped(shape: Shape, target: Sequence[int]) -> Shape | None:
    """The shape after a Reshape: 0 copies a dimension, and -1 takes what is left."""
    if len(target) > MAX_RANK or any(size < -1 or (size == 0 and at >= len(shape)) for at, size in enumerate(target)):
        return None
    sizes: list[int | None] = [shape[at] if size == 0 else size for at, size in enumerate(target)]
    if -1 not in target:
        return tuple(sizes)
    if list(target).count(-1) > 1:
        return None
    copied = {at for at, size in enumerate(target) if size == 0}
    # Dimensions that are copied count on both sides.
    before = [dim for at, dim in enumerate(shape) if at not in copied]
    others = [size for size in target if size > 0]
    rest = _UNKNOWN if _UNKNOWN in before else None
    if rest is None and None not in before:
        rest, remainder = divmod(math.prod(dim for dim in before if dim is not None), math.prod(others))
        if remainder:
            return None
    sizes[list(target).index(-1)] = rest
    return tuple(sizes)


def whole_numbers(tensor: TensorProto | None, locate: Locate | None = None) -> list[int] | None:
    """The elements of a constant that holds a shape or axes; None for one that can hold neither.

    Bytes outside the message are read only with `locate`.
    """
    if tensor is None or tensor.data_type != INT64 or len(tensor.dims) != 1 or not 0 <= tensor.dims[0] <= MAX_RANK:
        return None
    if tensor.int64_data:
        return list(tensor.int64_data) if len(tensor.int64_data) == tensor.dims[0] else None
    raw = b"" if tensor.data_location == tensor.EXTERNAL else tensor.raw_data
    with suppress(ModelError, OSError):
        raw = raw if locate is None else locate(tensor).read().tobytes()
    return [int(value) for value in np.frombuffer(raw, "<i8")] if len(raw) == 8 * tensor.dims[0] else None
