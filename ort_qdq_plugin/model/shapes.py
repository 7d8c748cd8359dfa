"""The shapes of values: what a model states, what ONNX's inference says, and the arithmetic of dimensions.

Format facts: broadcasting, Reshape, Squeeze and Unsqueeze of the ONNX specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.elements import INT64
from ort_qdq_plugin.model.messages import attribute, int_attribute, onnx_library
from ort_qdq_plugin.model.tensors import MAX_RANK, Locate

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

__all__ = [
    "UNKNOWN",
    "Shape",
    "allows_zero",
    "broadcast",
    "either",
    "from_the_front",
    "inferred_graph",
    "multiplied",
    "of_rank",
    "reshaped_by",
    "stated_shapes",
    "whole_numbers",
]

Shape = tuple["int | None", ...]
"""Dimensions; None for one that is not fixed."""

UNKNOWN = -1
"""A dimension of which it is not known whether ONNX's inference would say it. It never leaves this folder."""


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
        return None if allows_zero(node) and 0 in values else _reshaped(shape, values)
    rank = len(shape) + (len(values) if node.op_type == "Unsqueeze" else 0)
    axes, dims = from_the_front(values, rank), iter(shape)
    if axes is None or rank > MAX_RANK:
        return None
    if node.op_type == "Squeeze":
        return tuple(dim for at, dim in enumerate(shape) if at not in axes)
    return tuple(1 if at in axes else next(dims) for at in range(rank))


def allows_zero(node: NodeProto) -> bool:
    """Whether a 0 in a Reshape's shape stands for itself, not for what the value has there."""
    return int_attribute(node, "allowzero") != 0


def from_the_front(axes: Sequence[int], rank: int) -> set[int] | None:
    """These axes of a value, counted from the front; None if they are not all there, or one is there twice."""
    counted = {axis + rank if axis < 0 else axis for axis in axes}
    return counted if len(counted) == len(axes) and all(0 <= axis < rank for axis in counted) else None


def either(dims: Sequence[int | None]) -> int | None:
    """What is known of a dimension that several values share."""
    return next((dim for dim in dims if dim is not None and dim != UNKNOWN), UNKNOWN if UNKNOWN in dims else None)


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape that these give together by multidirectional broadcasting."""
    rank = max(map(len, shapes), default=0)
    columns = zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True)
    return tuple(either([dim for dim in dims if dim != 1] or [1]) for dims in columns)


def multiplied(dims: Sequence[int | None]) -> int | None:
    """The product of dimensions."""
    if None in dims:
        return None
    return UNKNOWN if UNKNOWN in dims else math.prod(dim for dim in dims if dim is not None)


def of_rank(shape: Shape) -> Shape:
    """The shape of a value of the same rank whose dimensions may be fixed where those of `shape` are, if at all."""
    return tuple(None if dim is None else UNKNOWN for dim in shape)


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
    rest = multiplied(before)
    if rest is not None and rest != UNKNOWN:
        rest, remainder = divmod(rest, math.prod(others))
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
