"""Transpose, Reshape and their like, followed on axes alone: how the stored tensor looks to the product that reads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.model.elements import CODES, SCALE_TYPES
from ort_qdq_plugin.model.graph import Scope
from ort_qdq_plugin.model.messages import NodeProto, attribute, int_attribute
from ort_qdq_plugin.model.operators import role_of
from ort_qdq_plugin.model.shapes import allows_zero, reshaped_by, whole_numbers
from ort_qdq_plugin.model.tensors import MAX_RANK, Locate
from ort_qdq_plugin.report.weights import Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["View", "follow", "view_of"]

# A fused node may leave out what Casts to these round. Casts to other types make other values.
_FLOATING = SCALE_TYPES | {CODES["double"]}


class View(NamedTuple):
    """A value that has every element of a stored tensor exactly once, in another shape or order."""

    stored_shape: tuple[int, ...]  # the tensor's own shape
    # For each axis of the value, the stored axes that it runs over, outermost first. Stored axes of size 1 are left out.
    axes: tuple[tuple[int, ...], ...]
    data_type: int  # the TensorProto.DataType of the value

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape."""
        return tuple(self.size(axis) for axis in self.axes)

    def size(self, stored_axes: Sequence[int]) -> int:
        """Elements along these stored axes together."""
        return math.prod(self.stored_shape[axis] for axis in stored_axes)

    def transposed(self, perm: Sequence[int]) -> View:
        """The view after a Transpose; raises NotFusable if `perm` is no permutation."""
        if len(perm) != len(self.axes) or sorted(perm) != list(range(len(self.axes))):
            raise NotFusable(Reason.INVALID)
        return self._replace(axes=tuple(self.axes[axis] for axis in perm))

    def reshaped(self, shape: Sequence[int]) -> View:
        """The view after a Reshape. A stored axis that it splits is several axes of a finer `stored_shape`.

        Raises NotFusable if no axes have the new shape's elements for parts.
        """
        parts = [[size] for size in self.stored_shape]
        remaining = [(axis, 0) for axes in self.axes for axis in axes]
        taken: list[list[tuple[int, int]]] = []
        for size in shape:
            left, group = size, list[tuple[int, int]]()
            while left > 1 and remaining:
                axis, at = remaining.pop(0)
                has = parts[axis][at]
                outer = math.gcd(left, has)
                if outer not in (left, has):
                    raise NotFusable(Reason.RESHAPE)
                if outer != has:
                    parts[axis][at:] = [outer, has // outer]
                    remaining.insert(0, (axis, at + 1))
                group.append((axis, at))
                left //= outer
            if left != 1:
                raise NotFusable(Reason.RESHAPE)
            taken.append(group)
        if remaining or max(len(shape), sum(map(len, parts))) > MAX_RANK:
            raise NotFusable(Reason.RESHAPE)
        firsts = list(accumulate(map(len, parts), initial=0))
        axes = tuple(tuple(firsts[axis] + at for axis, at in group) for group in taken)
        return self._replace(stored_shape=tuple(size for one in parts for size in one), axes=axes)


def view_of(shape: Sequence[int], data_type: int) -> View:
    """The view of a tensor as it is stored."""
    return View(tuple(shape), tuple((axis,) if size != 1 else () for axis, size in enumerate(shape)), data_type)


def follow(view: View, scope: Scope, node: NodeProto, locate: Locate) -> View | None:
    """The view of a node's output, where the node reads `view` as its first input; None for operators that are no views.

    Format facts: Transpose, Reshape, Flatten, Squeeze, Unsqueeze, Identity and Cast of the ONNX specification.

    Raises NotFusable where the node is one of these, but does something that cannot be followed.
    """
    if role_of(node) != "view" or len(node.output) != 1:
        return None
    kind, shape = node.op_type, view.shape
    if kind == "Identity":
        return view
    if kind == "Cast":
        to = attribute(node, "to")
        if to is not None and to.i not in _FLOATING:
            raise NotFusable(Reason.ROUNDED)
        return None if to is None else view._replace(data_type=to.i)
    if kind == "Transpose":
        perm = attribute(node, "perm")
        return view.transposed(perm.ints if perm is not None else list(reversed(range(len(shape)))))
    if kind == "Flatten":
        axis = int_attribute(node, "axis", 1)
        if not -len(shape) <= axis <= len(shape):
            raise NotFusable(Reason.INVALID)
        return view.reshaped([math.prod(shape[:axis]), math.prod(shape[axis:])])
    if kind == "Squeeze" and attribute(node, "axes") is None and len(node.input) < 2:
        return view.reshaped([size for size in shape if size != 1])
    if kind in ("Reshape", "Squeeze", "Unsqueeze"):
        return view.reshaped(_new_shape(shape, scope, node, locate))
    return None


def _new_shape(shape: tuple[int, ...], scope: Scope, node: NodeProto, locate: Locate) -> list[int]:
    """The shape after a Reshape, Squeeze or Unsqueeze."""

    def numbers(name: str) -> list[int]:
        found = whole_numbers(scope.constant(name), locate)
        if found is None:
            raise NotFusable(Reason.RESHAPE)
        return found

    if node.op_type == "Reshape" and (len(node.input) < 2 or (allows_zero(node) and 0 in numbers(node.input[1]))):
        raise NotFusable(Reason.RESHAPE)
    new = reshaped_by(node, shape, numbers)
    if new is None:
        raise NotFusable(Reason.INVALID)
    return [size for size in new if size is not None]
