"""Parts of a dequantized weight: what Split, Slice and Gather with constant indices take of it.

A part of the dequantized values is what the same part of the integers is dequantized to, by the scales and the zero points
that belong to it.

Format facts: Split, Slice and Gather of the ONNX specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.folding import building
from ort_qdq_plugin.folding.computed import as_expression, as_tensor
from ort_qdq_plugin.folding.expression import Expression, Stored
from ort_qdq_plugin.fusion.dequantize import Dequantized, Seen
from ort_qdq_plugin.model.elements import UINT8, bits_of
from ort_qdq_plugin.model.messages import NodeProto, attribute, int_attribute
from ort_qdq_plugin.model.tensors import StoredTensor, tensor_bytes
from ort_qdq_plugin.report.weights import Reason

__all__ = ["Numbers", "gathered", "sliced", "split", "taken", "taken_tensor"]

Numbers = Callable[[str], tuple[list[int], int]]
"""The whole numbers that a constant of a name holds, and its rank, 0 or 1; raises NotFusable for all others."""

# Since this opset Slice has inputs, and Split takes lengths that differ from an input.
_SLICE_INPUTS, _SPLIT_INPUT = 10, 13
_NUM_OUTPUTS = 18  # the opset since which a Split says into how many parts, or which ones: either, not both

_UNBOUNDED = 1 << 62


def split(seen: Seen, node: NodeProto, opset: int, numbers: Numbers) -> list[Seen]:
    """What each output of a Split is."""
    axis = _from_front(int_attribute(node, "axis"), len(seen.view.axes))
    size, count = seen.view.shape[axis], len(node.output)
    given, number = attribute(node, "split"), attribute(node, "num_outputs")
    has_input = len(node.input) > 1 and node.input[1] != ""
    if opset >= _NUM_OUTPUTS and has_input == (number is not None):
        raise NotFusable(Reason.INVALID)
    if given is not None:
        lengths = list(given.ints)
    elif opset >= _SPLIT_INPUT and has_input:
        lengths, _ = numbers(node.input[1])
    else:
        # As even as possible: the last one may be shorter.
        each = -(-size // count)
        lengths = [max(0, min(each, size - at * each)) for at in range(count)]
        if number.i != count if number is not None else size % count:
            raise NotFusable(Reason.INVALID)
    if len(lengths) != count or min(lengths) < 0 or sum(lengths) != size:
        raise NotFusable(Reason.INVALID)
    ends = accumulate(lengths)
    return [taken(seen, axis, range(end - length, end)) for end, length in zip(ends, lengths, strict=True)]


def sliced(seen: Seen, node: NodeProto, opset: int, numbers: Numbers) -> Seen:
    """What a Slice takes."""
    shape = seen.view.shape
    if opset >= _SLICE_INPUTS:
        found = [numbers(name)[0] if name else None for name in (*node.input[1:], "", "", "", "")[:4]]
    else:
        attributes = [attribute(node, name) for name in ("starts", "ends", "axes")]
        found = [None if given is None else list(given.ints) for given in attributes] + [None]
    starts, ends = found[0] or [], found[1] or []
    axes = list(range(len(starts))) if found[2] is None else found[2]
    steps = [1] * len(starts) if found[3] is None else found[3]
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise NotFusable(Reason.INVALID)
    axes = [_from_front(axis, len(shape)) for axis in axes]
    if len(set(axes)) != len(axes):
        raise NotFusable(Reason.INVALID)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # Python's slices count from the end, and stop at the bounds, as these do.
        seen = taken(seen, axis, range(shape[axis])[slice(_bounded(start), _bounded(end), _bounded(step))])
    return seen


def gathered(seen: Seen, node: NodeProto, numbers: Numbers) -> Seen:
    """What a Gather takes whose indices are a constant, a single one or a vector."""
    axis = _from_front(int_attribute(node, "axis"), len(seen.view.axes))
    size = seen.view.shape[axis]
    indices, rank = numbers(node.input[1])
    if any(not -size <= index < size for index in indices):
        raise NotFusable(Reason.INVALID)
    part = taken(seen, axis, tuple(index % size for index in indices))
    if rank == 1:
        return part
    axes = part.view.axes
    return part._replace(view=part.view._replace(axes=(*axes[:axis], *axes[axis + 1 :])))


def taken(seen: Seen, axis: int, indices: Sequence[int]) -> Seen:
    """Some indices of an axis of the value.

    Raises:
        NotFusable: There are none or more than the axis has, or the part is none of the weight as it is stored, or of its
            blocks.
    """
    dequantized, view = seen.dequantized, seen.view
    axes = view.axes[axis]
    indices = _as_range(indices)
    if indices == range(view.size(axes)):
        return seen
    if not 0 < len(indices) <= view.size(axes):
        raise NotFusable(Reason.PART)
    while len(axes) > 1:
        # The value's axis runs over several stored ones: whole indices of the first of these, or all within one of them.
        inner = view.size(axes[1:])
        first = indices[0] // inner
        if isinstance(indices, range) and indices.step == 1 and not indices.start % inner and not len(indices) % inner:
            indices, axes = range(first, first + len(indices) // inner), axes[:1]
        elif all(index // inner == first for index in indices):
            dequantized = _part(dequantized, axes[0], range(first, first + 1))
            indices, axes = _as_range([index - first * inner for index in indices]), axes[1:]
        else:
            raise NotFusable(Reason.PART)
    dequantized = _part(dequantized, axes[0], indices)
    shape = dequantized.weight.shape
    left = tuple(tuple(stored for stored in group if shape[stored] != 1) for group in view.axes)
    return Seen(dequantized, view._replace(stored_shape=shape, axes=left), seen.nodes)


def _part(dequantized: Dequantized, axis: int, indices: Sequence[int]) -> Dequantized:
    """Some indices of a stored axis."""
    block, scales, zero_points = dequantized.block, dequantized.scales, dequantized.zero_points
    along, of_scales = None if dequantized.axis is None else axis, indices
    if dequantized.axis == axis and block:
        of_scales = _blocks(indices, block)
    elif not block:
        along = 0 if dequantized.axis == axis else None
    if along is not None:
        scales = taken_tensor(scales, along, of_scales)
        zero_points = None if zero_points is None else taken_tensor(zero_points, along, of_scales)
    return dequantized._replace(
        weight=taken_tensor(dequantized.weight, axis, indices),
        scales=scales,
        zero_points=zero_points,
        factors=tuple(
            factor if factor.shape[axis] == 1 else _taken(factor, axis, indices) for factor in dequantized.factors
        ),
    )


def _blocks(indices: Sequence[int], block: int) -> Sequence[int]:
    """The blocks that indices of an axis belong to, of which each `block` in turn have to be in the same one."""
    blocks = np.asarray(indices) // block
    firsts = blocks[::block]
    if (np.repeat(firsts, block)[: blocks.size] != blocks).any():
        raise NotFusable(Reason.PART)
    return _as_range(firsts.tolist())


def taken_tensor(tensor: StoredTensor, axis: int, indices: Sequence[int]) -> StoredTensor:
    """Some indices of an axis of a tensor: where they are stored, if they lie there in one piece, else computed from it."""
    if not isinstance(indices, range) or indices.step != 1 or not tensor.source.is_stored:
        return as_tensor(_taken(as_expression(tensor), axis, indices), tensor.name)
    shape = (*tensor.shape[:axis], len(indices), *tensor.shape[axis + 1 :])
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :]) * bits_of(tensor.data_type)
    if indices.start * inner % 8 or len(indices) * inner % 8 or (outer > 1 and tensor.shape[axis] * inner % 8):
        return as_tensor(_taken(as_expression(tensor), axis, indices), tensor.name)
    # It begins and ends on the borders of bytes: these are moved as they are, if at all.
    start, length, nbytes = indices.start * inner // 8, len(indices) * inner // 8, tensor_bytes(tensor.data_type, shape)
    if outer == 1:
        return tensor._replace(shape=shape, offset=tensor.offset + start, nbytes=nbytes)
    rows = tensor._replace(data_type=UINT8, shape=(outer, tensor.shape[axis] * inner // 8))
    part = as_tensor(building.sliced(Stored(rows), 1, start, 1, length), tensor.name)
    return part._replace(data_type=tensor.data_type, shape=shape)


def _taken(expression: Expression, axis: int, indices: Sequence[int]) -> Expression:
    if isinstance(indices, range):
        return building.sliced(expression, axis, indices.start, indices.step, len(indices))
    return building.taken(expression, axis, indices)


def _as_range(indices: Sequence[int]) -> Sequence[int]:
    """Indices that follow each other at one distance as a range; others as they are."""
    if isinstance(indices, range) or not indices:
        return indices
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    found = range(indices[0], indices[0] + step * len(indices), step) if step else ()
    return found if list(found) == list(indices) else tuple(indices)


def _from_front(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise NotFusable(Reason.INVALID)
    return axis % rank


def _bounded(number: int) -> int:
    return max(-_UNBOUNDED, min(number, _UNBOUNDED))
