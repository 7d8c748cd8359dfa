"""Transpose, Reshape and their like, followed on axes alone: how the stored tensor looks to the product that reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.fusion.decision import NotFusable
from ort_qdq_plugin.model.elements import INT64
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import attribute, is_standard
from ort_qdq_plugin.model.tensors import MAX_RANK
from ort_qdq_plugin.report import Reason

if TYPE_CHECKING:
    from onnx import NodeProto

    from ort_qdq_plugin.fusion.dequantize import Locate

__all__ = ["View", "constant_integers", "follow", "view_of"]


class View(NamedTuple):
    """A value that has every element of a stored tensor exactly once, in another shape or order.

    Attributes:
        stored_shape: The tensor's own shape.
        axes: For each axis of the value, the stored axes that it runs over, outermost first. Stored axes of size 1 are left
            out.
        data_type: The TensorProto.DataType of the value.
    """

    stored_shape: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    data_type: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape."""
        return tuple(self.size(axis) for axis in self.axes)

    def size(self, stored_axes: Sequence[int]) -> int:
        """Elements along these stored axes together."""
        return math.prod(self.stored_shape[axis] for axis in stored_axes)

    def transposed(self, perm: Sequence[int]) -> View:
        """The view behind a Transpose.

        Raises:
            NotFusable: `perm` is no permutation.
        """
        if len(perm) != len(self.axes) or sorted(perm) != list(range(len(self.axes))):
            raise NotFusable(Reason.INVALID)
        return self._replace(axes=tuple(self.axes[axis] for axis in perm))

    def reshaped(self, shape: Sequence[int]) -> View:
        """The view behind a Reshape.

        Raises:
            NotFusable: The new shape splits a stored axis.
        """
        if len(shape) > MAX_RANK:
            raise NotFusable(Reason.RESHAPE)
        remaining = [axis for axes in self.axes for axis in axes]
        axes = []
        for size in shape:
            taken: list[int] = []
            while self.size(taken) < size and remaining:
                taken.append(remaining.pop(0))
            if self.size(taken) != size:
                raise NotFusable(Reason.RESHAPE)
            axes.append(tuple(taken))
        if remaining:
            raise NotFusable(Reason.RESHAPE)
        return self._replace(axes=tuple(axes))


def view_of(shape: Sequence[int], data_type: int) -> View:
    """The view of a tensor as it is stored."""
    return View(tuple(shape), tuple((axis,) if size != 1 else () for axis, size in enumerate(shape)), data_type)


def follow(view: View, scope: Scope, node: NodeProto, locate: Locate) -> View | None:
    """Follow a view through a node that reads it as its first input.

    Format facts: Transpose, Reshape, Flatten, Squeeze, Unsqueeze, Identity and Cast of the ONNX specification.

    Returns:
        The view of the node's output; None for other operators.

    Raises:
        NotFusable: The node is one of these, but does something that cannot be followed.
    """
    if not is_standard(node) or len(node.output) != 1:
        return None
    kind, shape = node.op_type, view.shape
    if kind == "Identity":
        return view
    if kind == "Cast":
        to = attribute(node, "to")
        return None if to is None else view._replace(data_type=to.i)
    if kind == "Transpose":
        perm = attribute(node, "perm")
        return view.transposed(perm.ints if perm is not None else list(reversed(range(len(shape)))))
    if kind == "Reshape":
        return view.reshaped(_reshape_target(shape, scope, node, locate))
    if kind == "Flatten":
        given = attribute(node, "axis")
        axis = given.i if given is not None else 1
        if not -len(shape) <= axis <= len(shape):
            raise NotFusable(Reason.INVALID)
        return view.reshaped([math.prod(shape[:axis]), math.prod(shape[axis:])])
    if kind == "Squeeze":
        axes = _axes(scope, node, locate)
        if axes is not None and not _are_axes(axes, len(shape)):
            raise NotFusable(Reason.INVALID)
        dropped = (
            {axis % len(shape) for axis in axes} if axes is not None else {at for at, size in enumerate(shape) if size == 1}
        )
        return view.reshaped([size for at, size in enumerate(shape) if at not in dropped])
    if kind == "Unsqueeze":
        axes = _axes(scope, node, locate)
        if axes is None:
            raise NotFusable(Reason.INVALID)
        rank = len(shape) + len(axes)
        if rank > MAX_RANK:
            raise NotFusable(Reason.RESHAPE)
        if not _are_axes(axes, rank):
            raise NotFusable(Reason.INVALID)
        added, sizes = {axis % rank for axis in axes}, iter(shape)
        return view.reshaped([1 if at in added else next(sizes, 1) for at in range(rank)])
    return None


def constant_integers(scope: Scope, name: str, locate: Locate) -> list[int] | None:
    """The elements of a constant int64 tensor, a shape or axes; None where `name` is none."""
    tensor = scope.constant(name)
    if tensor is None or tensor.data_type != INT64 or len(tensor.dims) != 1 or any(size > MAX_RANK for size in tensor.dims):
        return None
    if len(tensor.int64_data) > MAX_RANK:
        return None
    if tensor.int64_data:
        return list(tensor.int64_data)
    try:
        return [int(value) for value in locate(tensor).read().view(np.int64)]
    except (ModelError, OSError):
        return None


def _are_axes(axes: Sequence[int], rank: int) -> bool:
    """Whether these are different axes of a value of that rank."""
    return all(-rank <= axis < rank for axis in axes) and len({axis % rank for axis in axes}) == len(axes)


def _axes(scope: Scope, node: NodeProto, locate: Locate) -> list[int] | None:
    """Squeeze's and Unsqueeze's axes: an attribute before opset 13, an input since."""
    given = attribute(node, "axes")
    if given is not None:
        return list(given.ints)
    if len(node.input) < 2:
        return None
    # An input that is there but has no name fails in ONNX Runtime, when it runs.
    axes = constant_integers(scope, node.input[1], locate) if node.input[1] else None
    if axes is None:
        raise NotFusable(Reason.RESHAPE)
    return axes


def _reshape_target(shape: tuple[int, ...], scope: Scope, node: NodeProto, locate: Locate) -> list[int]:
    target = constant_integers(scope, node.input[1], locate) if len(node.input) > 1 else None
    allow_zero = attribute(node, "allowzero")
    if target is None or (allow_zero is not None and allow_zero.i):
        raise NotFusable(Reason.RESHAPE)
    if any(size == 0 and at >= len(shape) for at, size in enumerate(target)) or target.count(-1) > 1:
        raise NotFusable(Reason.INVALID)
    sizes = [shape[at] if size == 0 else size for at, size in enumerate(target)]
    known = math.prod(size for size in sizes if size != -1)
    if known <= 0 or math.prod(shape) % known:
        raise NotFusable(Reason.INVALID)
    return [math.prod(shape) // known if size == -1 else size for size in sizes]
