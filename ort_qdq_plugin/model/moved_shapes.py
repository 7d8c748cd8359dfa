"""The shapes after operators that move elements: views, parts, joined and repeated values, and lookups.

Format facts: the operators named below, of the ONNX specification from opset 10 on.
"""

from __future__ import annotations

from collections.abc import Sequence

from ort_qdq_plugin.model.messages import attribute
from ort_qdq_plugin.model.seen import NOTHING, Seen
from ort_qdq_plugin.model.shapes import (
    UNKNOWN,
    Shape,
    allows_zero,
    broadcast,
    either,
    from_the_front,
    multiplied,
    of_rank,
    reshaped_by,
)
from ort_qdq_plugin.model.tensors import MAX_RANK

__all__ = [
    "concatenated",
    "expanded",
    "filled",
    "flattened",
    "gathered",
    "gathered_parts",
    "like_indices",
    "moved_depth",
    "padded",
    "reshaped",
    "resized",
    "shape_of_shape",
    "sliced",
    "split",
    "squeezed",
    "tiled",
    "transposed",
    "unsqueezed",
]

# Since this opset the rank of a Reshape's result follows from the length of the shape that it is given.
_RESHAPES_BY_RANK = 14

_Outputs = Sequence["Shape | None"]


def transposed(seen: Seen) -> _Outputs:
    """Transpose."""
    axes = list(range(len(seen.first)))
    order = seen.ints("perm") or axes[::-1]
    return [tuple(seen.first[axis] for axis in order)] if sorted(order) == axes != [] else []


def reshaped(seen: Seen) -> _Outputs:
    """Reshape."""
    target = seen.numbers(1)
    if allows_zero(seen.node) and (target is None or 0 in target):
        return []
    if target is None:
        is_open = seen.is_computed(1) and seen.opset < _RESHAPES_BY_RANK
        return [NOTHING] if is_open else _of_length(seen, 1)
    before = seen.shape(0)
    if before is not None:
        return [reshaped_by(seen.node, before, lambda _: target)]
    # If it has a type, a value without a shape gets a rank.
    if seen.shapes[0] is not NOTHING or len(target) > MAX_RANK or min(target, default=0) < -1:
        return []
    return [tuple(UNKNOWN if size < 1 else size for size in target)]


def _of_length(seen: Seen, at: int) -> _Outputs:
    """The shape that the input at this place holds, which is computed: nothing but how many numbers it has is known."""
    length = seen.shape(at) if seen.is_computed(at) else None
    if length is None or len(length) != 1 or length[0] is None or not 0 <= length[0] <= MAX_RANK:
        return []
    return [(None,) * length[0]]


def squeezed(seen: Seen) -> _Outputs:
    """Squeeze."""
    if seen.ints("axes") is None and not seen.has(1):
        is_fixed = None not in seen.first and UNKNOWN not in seen.first
        return [tuple(dim for dim in seen.first if dim != 1)] if is_fixed else []
    return unsqueezed(seen)


def unsqueezed(seen: Seen) -> _Outputs:
    """Unsqueeze."""
    return [reshaped_by(seen.node, seen.first, lambda _: seen.numbers(1))]


def flattened(seen: Seen) -> _Outputs:
    """Flatten."""
    rank, axis = len(seen.first), seen.whole("axis", 1)
    if not -rank <= axis <= rank:
        return []
    axis += rank if axis < 0 else 0
    return [(multiplied(seen.first[:axis]), multiplied(seen.first[axis:]))]


def shape_of_shape(seen: Seen) -> _Outputs:
    """Shape."""
    before = seen.shape(0)
    if before is None:
        return [(None if seen.shapes[0] is NOTHING else UNKNOWN,)]
    rank = len(before)
    start, end, _ = slice(seen.whole("start"), seen.whole("end", rank)).indices(rank)
    return [(max(0, end - start),)]


def concatenated(seen: Seen) -> _Outputs:
    """Concat."""
    shapes, rank = seen.all, len(seen.first)
    given = attribute(seen.node, "axis")
    axis = None if given is None else seen.axis(0, rank)
    if axis is None or any(len(shape) != rank for shape in shapes):
        return []
    along = [shape[axis] for shape in shapes]
    dims = [either(column) for column in zip(*shapes, strict=True)]
    if None in along:
        dims[axis] = None
    else:
        dims[axis] = UNKNOWN if UNKNOWN in along else sum(dim for dim in along if dim is not None)
    return [tuple(dims)]


def split(seen: Seen) -> _Outputs:
    """Split."""
    count, axis = len(seen.node.output), seen.axis(0, len(seen.first))
    if axis is None:
        return []
    whole = seen.first[axis]
    sizes: list[int] | None = seen.ints("split")
    if seen.has(1):
        sizes = seen.numbers(1)
        if sizes is None and whole is not None:
            return []
    if whole is None:
        parts: list[int | None] = [None] * count
    elif sizes is not None:
        parts = [*sizes]
        if len(parts) != count or (whole != UNKNOWN and sum(sizes) != whole):
            return []
    elif whole == UNKNOWN:
        parts = [UNKNOWN] * count
    elif whole % count or seen.whole("num_outputs", count) != count:
        return []
    else:
        parts = [whole // count] * count
    return [(*seen.first[:axis], part, *seen.first[axis + 1 :]) for part in parts]


def sliced(seen: Seen) -> _Outputs:
    """Slice."""
    rank, dims = len(seen.first), list(seen.first)
    computed = [at for at in range(1, len(seen.node.input)) if seen.is_computed(at)]
    if computed:
        # Computed axes and steps of which no shape is known count as none.
        is_open = computed[0] < 3 or seen.shape(computed[0]) is not None
        return [(None,) * rank if is_open else of_rank(seen.first)]
    starts, ends = seen.numbers(1), seen.numbers(2)
    axes = seen.numbers(3) if seen.has(3) else list(range(len(starts or ())))
    steps = seen.numbers(4) if seen.has(4) else [1] * len(starts or ())
    if starts is None or ends is None or axes is None or steps is None:
        return [of_rank(seen.first)]
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps or from_the_front(axes, rank) is None:
        return []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        dim = dims[axis]
        if dim is not None and dim != UNKNOWN:
            dims[axis] = len(range(*_clamped(start, end, step, dim)))
    return [tuple(dims)]


def _clamped(start: int, end: int, step: int, dim: int) -> tuple[int, int, int]:
    """Where a slice of a dimension starts and ends, and its step. An `end` that is still negative is the front."""
    start, end = (place + dim if place < 0 else place for place in (start, end))
    least, most = (0, dim) if step > 0 else (-1, dim - 1)
    return min(max(start, 0), most), min(max(end, least), most), step


def padded(seen: Seen) -> _Outputs:
    """Pad."""
    rank = len(seen.first)
    pads = seen.ints("pads") if not seen.has(1) else seen.numbers(1)
    axes = seen.numbers(3) if seen.has(3) else list(range(rank))
    if axes is None:
        return []
    if pads is None:
        return [(None,) * rank if seen.is_computed(1) else of_rank(seen.first)]
    if len(pads) != 2 * len(axes) or from_the_front(axes, rank) is None:
        return []
    dims = list(seen.first)
    for at, axis in enumerate(axes):
        dim = dims[axis]
        if dim is not None and dim != UNKNOWN:
            dims[axis] = dim + pads[at] + pads[at + len(axes)]
    # Where there are no axes, ONNX's inference gives up.
    return [tuple(dims)] if axes else []


def expanded(seen: Seen) -> _Outputs:
    """Expand."""
    target = seen.numbers(1)
    if target is not None:
        return [broadcast([seen.first, tuple(target)])] if min(target, default=0) >= 0 else []
    return [of_rank(broadcast([seen.first, shape])) for shape in _of_length(seen, 1) if shape is not None]


def tiled(seen: Seen) -> _Outputs:
    """Tile."""
    repeats = seen.numbers(1)
    if repeats is None:
        return [(None,) * len(seen.first) if seen.is_computed(1) else of_rank(seen.first)]
    if len(repeats) != len(seen.first) or min(repeats, default=0) < 0:
        return []
    return [tuple(multiplied([dim, times]) for dim, times in zip(seen.first, repeats, strict=True))]


def gathered(seen: Seen) -> _Outputs:
    """Gather."""
    axis = seen.axis(0, len(seen.first))
    return [] if axis is None else [(*seen.first[:axis], *seen.all[1], *seen.first[axis + 1 :])]


def gathered_parts(seen: Seen) -> _Outputs:
    """GatherND."""
    data, indices = seen.all
    depth = indices[-1] if indices else None
    start = None if depth is None or depth == UNKNOWN else depth + seen.whole("batch_dims")
    if start is None or not 0 <= start <= len(data):
        return []
    # Of a single number ONNX's inference says no shape.
    return [(*indices[:-1], *data[start:]) or NOTHING]


def like_indices(seen: Seen) -> _Outputs:
    """GatherElements."""
    return [seen.shape(1)]


def filled(seen: Seen) -> _Outputs:
    """ConstantOfShape."""
    target = seen.numbers(0)
    if target is not None:
        return [tuple(target)] if min(target, default=0) >= 0 else []
    return _of_length(seen, 0)


def resized(seen: Seen) -> _Outputs:
    """Resize."""
    rank, sizes = len(seen.first), seen.numbers(3)
    if seen.has_any("axes", "keep_aspect_ratio_policy"):
        return [of_rank(seen.first) if not seen.has(3) else (UNKNOWN,) * rank]
    if sizes:
        return [tuple(sizes)] if len(sizes) == rank and min(sizes) > 0 else []
    return [(None,) * rank if seen.is_computed(3) else of_rank(seen.first)]


def moved_depth(seen: Seen) -> _Outputs:
    """DepthToSpace and SpaceToDepth."""
    return [of_rank(seen.first)] if len(seen.first) == 4 and seen.whole("blocksize") > 0 else []
