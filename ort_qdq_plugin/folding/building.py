"""Expressions in the form that is read best: what puts axes into another order comes last.

A box of a transposed matrix is a short part of each row of the stored one, and a large weight would be read in millions of
those. So functions, slices and reshapes of something transposed become the transpose of those, and the last Transpose can be
left to what reads the whole (`unordered`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.folding.boxes import groups_of_axes
from ort_qdq_plugin.folding.expression import (
    Concatenated,
    Elementwise,
    Expression,
    Reshaped,
    Sliced,
    Spread,
    Stored,
    Taken,
    Transposed,
)
from ort_qdq_plugin.model.tensors import MAX_RANK

__all__ = ["concatenated", "elementwise", "inverse", "reshaped", "sliced", "spread", "taken", "transposed", "unordered"]

# A slice by larger steps reads index by index, not all that is between.
_MOST_STEP = 8
_MOST_INDICES = 1 << 16


def transposed(source: Expression, perm: Sequence[int]) -> Expression:
    """Axes in another order: axis i of the result is axis perm[i] of the source."""
    order = tuple(perm)
    if order == tuple(range(len(order))):
        return source
    if isinstance(source, Transposed):
        return transposed(source.source, [source.perm[axis] for axis in order])
    if isinstance(source, Spread):
        shape = tuple(source.shape[axis] for axis in order)
        return Spread(transposed(source.source, order), order.index(source.axis), source.block, shape)
    return Transposed(source, order)


def inverse(perm: Sequence[int]) -> list[int]:
    """The order that undoes another one."""
    return sorted(range(len(perm)), key=perm.__getitem__)


def unordered(source: Expression) -> tuple[Expression, tuple[int, ...]]:
    """An expression without the Transpose that comes last, and that one's `perm`."""
    if isinstance(source, Transposed):
        return source.source, source.perm
    return source, tuple(range(len(source.shape)))


def reshaped(source: Expression, shape: tuple[int, ...]) -> Expression:
    """The same elements in the same order, in a shape that has as many.

    Raises:
        ModelError: It has other ones, or too many dimensions.
    """
    if math.prod(shape) != math.prod(source.shape) or len(shape) > MAX_RANK:
        raise ModelError(f"shape {shape} for the elements of {source.shape}")
    if shape == source.shape:
        return source
    if isinstance(source, Reshaped):
        return reshaped(source.source, shape)
    if isinstance(source, Stored):
        # It stays what it is, and can be used where it is stored.
        return Stored(source.tensor._replace(shape=shape))
    if isinstance(source, Transposed):
        if sum(size > 1 for size in source.shape) <= 1:
            return reshaped(source.source, shape)
        # Where axes that are merged or split lie side by side before the transpose as well, it can come afterwards.
        groups = list(groups_of_axes(source.shape, shape))
        before = [source.perm[mine] for mine, _ in groups]
        if all(list(axes) == list(range(axes[0], axes[0] + len(axes))) for axes in before if axes):
            order = sorted(range(len(groups)), key=before.__getitem__)
            axes = [axis for at in order for axis in range(groups[at][1].start, groups[at][1].stop)]
            return transposed(reshaped(source.source, tuple(shape[axis] for axis in axes)), inverse(axes))
    return Reshaped(source, shape)


def elementwise(name: str, compute: Callable[..., np.ndarray], operands: Sequence[Expression], data_type: int) -> Expression:
    """A function of the elements that lie in the same place of all operands, broadcast against each other.

    Raises:
        ModelError: Their shapes do not fit together.
    """
    try:
        shape = np.broadcast_shapes(*(operand.shape for operand in operands))
    except ValueError:
        raise ModelError(f"{name}: shapes that do not fit together") from None
    if len(shape) > MAX_RANK:
        raise ModelError(f"{name}: {len(shape)} dimensions")
    perm = next((one.perm for one in operands if isinstance(one, Transposed) and one.shape == shape), None)
    if perm is None:
        return Elementwise(name, compute, tuple(operands), data_type, shape)
    back = inverse(perm)
    before = [
        one if not one.shape else transposed(reshaped(one, (1,) * (len(shape) - len(one.shape)) + one.shape), back)
        for one in operands
    ]
    return transposed(Elementwise(name, compute, tuple(before), data_type, tuple(shape[axis] for axis in back)), perm)


def spread(source: Expression, axis: int, block: int, shape: tuple[int, ...]) -> Expression:
    """Each element of the source `block` times along an axis, the last one as often as it fits."""
    return Spread(source, axis, block, shape)


def sliced(source: Expression, axis: int, start: int, step: int, length: int) -> Expression:
    """Every `step`-th index of an axis, from `start` on: `length` of them."""
    if (start, step, length) == (0, 1, source.shape[axis]):
        return source
    if isinstance(source, Transposed):
        return transposed(sliced(source.source, source.perm[axis], start, step, length), source.perm)
    if abs(step) > _MOST_STEP and length > 1:
        return taken(source, axis, range(start, start + step * length, step))
    return Sliced(source, axis, start, step, length)


def taken(source: Expression, axis: int, indices: Sequence[int]) -> Expression:
    """Indices of an axis, none of them negative, in any order and any number of times.

    Raises:
        ModelError: There are too many.
    """
    if len(indices) > _MOST_INDICES:
        raise ModelError(f"{len(indices)} indices")
    if isinstance(source, Transposed):
        return transposed(taken(source.source, source.perm[axis], indices), source.perm)
    return Taken(source, axis, np.asarray(indices, np.int64).tobytes())


def concatenated(operands: Sequence[Expression], axis: int) -> Expression:
    """Expressions one after another along an axis."""
    if len(operands) == 1:
        return operands[0]
    perms = {operand.perm if isinstance(operand, Transposed) else None for operand in operands}
    (perm, *others) = perms
    if perm is not None and not others:
        return transposed(Concatenated(tuple(unordered(one)[0] for one in operands), perm[axis]), perm)
    return Concatenated(tuple(operands), axis)
