"""Axes of a dequantized weight split and merged, as a Reshape behind it splits and merges those of its values.

The operands get other shapes, and stay where they are stored. Only scales and zero points are repeated, where a Reshape cuts
blocks into smaller ones.

Format facts: ``axis`` and ``block_size`` of DequantizeLinear-21 of the ONNX specification. With blocks, each index of each
other axis has scales of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.folding.building import reshaped, spread
from ort_qdq_plugin.folding.computed import as_expression, as_tensor
from ort_qdq_plugin.folding.expression import Expression
from ort_qdq_plugin.fusion.dequantize import Dequantized
from ort_qdq_plugin.fusion.view import View, view_of
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.report.weights import Reason

__all__ = ["merged", "split"]


def split(dequantized: Dequantized, shape: tuple[int, ...]) -> Dequantized:
    """The same with axes of the weight split into those of this shape, each into parts of more than one index.

    Raises:
        NotFusable: No DequantizeLinear has an axis and blocks for the scales of such a weight.
    """
    stored, axis, block = dequantized.weight.shape, dequantized.axis, dequantized.block
    parts = _parts(stored, shape)
    finer = dequantized._replace(
        weight=_as(dequantized.weight, lambda weight: reshaped(weight, shape)),
        factors=tuple(reshaped(factor, _finer(factor.shape, parts)) for factor in dequantized.factors),
    )
    if axis is None:
        return finer
    along = range(sum(map(len, parts[:axis])), sum(map(len, parts[: axis + 1])))
    others = [at for at, size in enumerate(shape) if size != 1 and at not in along]
    if not block and len(along) == 1:
        return finer._replace(axis=along[0])
    if not block:
        # Each index of several axes has a scale, which all of another one share: a block.
        if len(others) != 1:
            raise NotFusable(Reason.RESHAPE)
        return _scaled(
            finer, tuple(size if at in along else 1 for at, size in enumerate(shape)), others[0], shape[others[0]]
        )
    if not dequantized.has_blocks and len(others) < 2:
        # All of the axis share a scale, and so do all of its parts.
        return _scaled(finer, tuple(shape[at] for at in others), others[0] if others else None, 0)
    if len(along) > 1:
        # The innermost part has the blocks. Those that lie across its border become smaller ones.
        length = min(block, stored[axis])
        block = math.gcd(length, shape[along[-1]])
        repeated = tuple(stored[axis] // block if at == axis else size for at, size in enumerate(dequantized.scales.shape))
        if block != length:
            finer = _rescaled(finer, lambda scales: spread(scales, axis, length // block, repeated))
    of_scales = tuple(-(-size // block) if at == along[-1] else size for at, size in enumerate(shape))
    return _scaled(finer, of_scales, along[-1], block)


def merged(dequantized: Dequantized, view: View) -> tuple[Dequantized, View]:
    """A weight that is seen with neighbouring axes merged, as one that has the shape in which it is seen.

    Others stay as they are, and so do those for whose scales no DequantizeLinear has an axis and blocks then.
    """
    shape, axis, block = view.shape, dequantized.axis, dequantized.block
    order = [stored for axes in view.axes for stored in axes]
    if shape == dequantized.weight.shape or order != sorted(order) or dequantized.factors:
        return dequantized, view
    coarser = dequantized._replace(weight=_as(dequantized.weight, lambda weight: reshaped(weight, shape)))
    seen = view_of(shape, view.data_type)
    if axis is None:
        return coarser, seen
    along = next((at for at, axes in enumerate(view.axes) if axis in axes), None)
    if along is None or view.axes[along][-1] != axis:
        return dequantized, view
    is_alone = len(view.axes[along]) == 1
    if not block:
        return (coarser._replace(axis=along), seen) if is_alone else (dequantized, view)
    size = dequantized.weight.shape[axis]
    length = block if is_alone else min(block, size)
    if not is_alone and size % length:
        return dequantized, view
    of_scales = tuple(-(-whole // length) if at == along else whole for at, whole in enumerate(shape))
    return _scaled(coarser, of_scales, along, length), seen


def _parts(stored: Sequence[int], shape: Sequence[int]) -> list[tuple[int, ...]]:
    """The sizes that each axis is split into."""
    parts: list[tuple[int, ...]] = []
    left = list(shape)
    for size in stored:
        sizes = [left.pop(0)]
        while math.prod(sizes) < size:
            sizes.append(left.pop(0))
        parts.append(tuple(sizes))
    return parts


def _finer(shape: Sequence[int], parts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The shape of a factor of the weight once the axes of that are split."""
    return tuple(1 if size == 1 else part for size, sizes in zip(shape, parts, strict=True) for part in sizes)


def _scaled(dequantized: Dequantized, shape: tuple[int, ...], axis: int | None, block: int) -> Dequantized:
    """With scales and zero points of this shape, and blocks along an axis."""
    return _rescaled(dequantized, lambda scales: reshaped(scales, shape))._replace(axis=axis, block=block)


def _rescaled(dequantized: Dequantized, change: Callable[[Expression], Expression]) -> Dequantized:
    zero_points = dequantized.zero_points
    return dequantized._replace(
        scales=_as(dequantized.scales, change),
        zero_points=None if zero_points is None else _as(zero_points, change),
    )


def _as(tensor: StoredTensor, change: Callable[[Expression], Expression]) -> StoredTensor:
    return as_tensor(change(as_expression(tensor)), tensor.name)
