"""Dequantized weights one after another: what a Concat makes of them is the joined integers, with joined scales."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.folding.building import concatenated, reshaped
from ort_qdq_plugin.folding.computed import as_expression, as_tensor
from ort_qdq_plugin.folding.expression import Expression
from ort_qdq_plugin.fusion.dequantize import Dequantized, Seen
from ort_qdq_plugin.fusion.factors import broadcast, constant
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.report.weights import Reason

__all__ = ["joined"]


def joined(parts: Sequence[Seen], axis: int) -> Seen:
    """The values one after another along an axis.

    Raises:
        NotFusable: They are stored, seen or scaled in ways that differ too much.
    """
    first = parts[0]
    rank = len(first.view.axes)
    if not -rank <= axis < rank:
        raise NotFusable(Reason.INVALID)
    axis %= rank
    if len(parts) == 1:
        return first
    # Where a part has but one index, its view does not tell which of the stored axes that is: others do.
    axes = next((part.view.axes for part in parts if len(part.view.axes) == rank and part.view.axes[axis]), None)
    if axes is None:
        raise NotFusable(Reason.JOINED)
    alike = (axes, (*axes[:axis], (), *axes[axis + 1 :]))
    if any(part.view.axes not in alike for part in parts):
        raise NotFusable(Reason.JOINED)
    along = axes[axis][0]
    kinds = {_kind(part, along) for part in parts}
    if len(kinds) != 1 or any(part.dequantized.factors for part in parts):
        raise NotFusable(Reason.JOINED)
    whole = _joined([part.dequantized for part in parts], along)
    view = first.view._replace(stored_shape=whole.weight.shape, axes=axes)
    return Seen(whole, view, sum(part.nodes + 1 for part in parts))


def _kind(part: Seen, along: int) -> tuple[object, ...]:
    """What has to be the same of all of them."""
    dequantized, shape = part.dequantized, part.dequantized.weight.shape
    types = (dequantized.weight.data_type, dequantized.scales.data_type, dequantized.output_type, part.view.data_type)
    return (*types, *shape[:along], len(shape), *shape[along + 1 :])


def _joined(parts: Sequence[Dequantized], along: int) -> Dequantized:
    first = parts[0]
    sizes = [part.weight.shape[along] for part in parts]
    # A block is as long as its axis at most; in the last part it may be cut.
    lengths = [min(part.block, part.weight.shape[part.axis]) if part.axis is not None else 0 for part in parts]
    is_cut = first.axis == along and lengths[-1] == sizes[-1] < lengths[0]
    granularity = {(part.axis, length) for part, length in zip(parts, lengths[:-1] if is_cut else lengths, strict=False)}
    if granularity <= {(None, 0), (along, 0)}:
        # A scale for each index, or for all of them: then for each of its indices.
        return _with(parts, along, scales_along=0, shapes=[(size,) for size in sizes], axis=along, block=0)
    if len(granularity) != 1:
        raise NotFusable(Reason.JOINED)
    ((_, block),) = granularity
    if block and (first.axis != along or not any(size % block for size in sizes[:-1])):
        shapes = [part.scales.shape for part in parts]
        return _with(parts, along, scales_along=along, shapes=shapes, axis=first.axis, block=block)
    # A scale for each index of another axis, which is another one in each part: they are blocks.
    if block or len(set(sizes)) != 1 or first.weight.elements != sizes[0] * first.scales.elements:
        raise NotFusable(Reason.JOINED)
    shapes = [(*part.weight.shape[:along], 1, *part.weight.shape[along + 1 :]) for part in parts]
    return _with(parts, along, scales_along=along, shapes=shapes, axis=along, block=sizes[0])


def _with(
    parts: Sequence[Dequantized],
    along: int,
    *,
    scales_along: int,
    shapes: Sequence[tuple[int, ...]],
    axis: int | None,
    block: int,
) -> Dequantized:
    """The parts joined along a stored axis, their scales along one of these shapes, which those of each part get first."""
    first = parts[0]
    zero_points = None
    if any(part.zero_points is not None for part in parts):
        zero_points = _concatenated(
            (
                constant(0, part.weight.data_type, shape) if part.zero_points is None else _shaped(part.zero_points, shape)
                for part, shape in zip(parts, shapes, strict=True)
            ),
            scales_along,
            next(part.zero_points.name for part in parts if part.zero_points is not None),
        )
    scales = (_shaped(part.scales, shape) for part, shape in zip(parts, shapes, strict=True))
    return first._replace(
        weight=_concatenated((as_expression(part.weight) for part in parts), along, first.weight.name),
        scales=_concatenated(scales, scales_along, first.scales.name),
        zero_points=zero_points,
        centred=all(part.centred for part in parts),
        axis=axis,
        block=block,
    )


def _shaped(tensor: StoredTensor, shape: tuple[int, ...]) -> Expression:
    """Scales or zero points in another shape; a single one for each index."""
    expression = as_expression(tensor)
    if tensor.elements == 1:
        return broadcast(reshaped(expression, (1,) * len(shape)), shape)
    return reshaped(expression, shape)


def _concatenated(parts: Iterable[Expression], axis: int, name: str) -> StoredTensor:
    return as_tensor(concatenated(tuple(parts), axis), name)
