"""The shapes after operators that slide a window over what they read: convolutions and pooling.

Format facts: Conv, ConvTranspose, MaxPool, AveragePool and LpPool of the ONNX specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ort_qdq_plugin.model.shapes import UNKNOWN, Shape, of_rank

if TYPE_CHECKING:
    from ort_qdq_plugin.model.seen import Seen

__all__ = ["convolved", "deconvolved", "pooled", "pooled_globally"]

_MIN_RANK = 3  # a batch, channels, and at least one axis to slide along


def convolved(seen: Seen, weight: int) -> Sequence[Shape | None]:
    """Conv, whose weight is the input at that place."""
    shape = seen.shape(weight)
    if shape is None or not len(seen.first) == len(shape) >= _MIN_RANK:
        return []
    kernel = seen.ints("kernel_shape") or _fixed(shape[2:])
    # Without a fixed kernel ONNX's inference does not even tell the rank.
    return [] if kernel is None else _slid(seen, shape[0], kernel)


def pooled(seen: Seen) -> Sequence[Shape | None]:
    """MaxPool, which may tell the indices as well, AveragePool and LpPool."""
    kernel = seen.ints("kernel_shape")
    if kernel is None or len(seen.first) < _MIN_RANK:
        return []
    return [*_slid(seen, seen.first[1], kernel)] * 2


def pooled_globally(seen: Seen) -> Sequence[Shape | None]:
    """GlobalMaxPool and its like."""
    first = seen.first
    return [(*first[:2], *[1] * (len(first) - 2))] if len(first) >= _MIN_RANK else []


def deconvolved(seen: Seen) -> Sequence[Shape | None]:
    """ConvTranspose."""
    first, weight = seen.first, seen.all[1]
    if not len(first) == len(weight) >= _MIN_RANK:
        return []
    kernel = seen.ints("kernel_shape") or _fixed(weight[2:])
    if kernel is None:
        return []
    group, channels = seen.whole("group", 1), weight[1]
    if channels is not None and channels != UNKNOWN:
        channels *= group
    return [(first[0], channels, *((UNKNOWN,) * len(kernel) if seen.has_any("output_shape") else of_rank(first[2:])))]


def _fixed(dims: Shape) -> list[int] | None:
    fixed = [dim for dim in dims if dim is not None and dim != UNKNOWN]
    return fixed if len(fixed) == len(dims) else None


def _slid(seen: Seen, channels: int | None, kernel: Sequence[int]) -> Sequence[Shape | None]:
    """The shape once a window of this size was slid over the first input."""
    dims = seen.first[2:]
    if len(kernel) != len(dims) or min(kernel) < 1:
        return []
    return [(seen.first[0], channels, *(_steps(seen, at, dim, kernel) for at, dim in enumerate(dims)))]


def _steps(seen: Seen, at: int, dim: int | None, kernel: Sequence[int]) -> int | None:
    """How many places a window takes along one axis."""
    if dim is None or dim == UNKNOWN:
        return dim
    ones = [1] * len(kernel)
    strides, dilations = seen.ints("strides") or ones, seen.ints("dilations") or ones
    pads = seen.ints("pads") or [0] * 2 * len(kernel)
    is_plain = seen.text("auto_pad", "NOTSET") == "NOTSET" and not seen.whole("ceil_mode")
    if not is_plain or not 2 * len(strides) == 2 * len(dilations) == len(pads) == 2 * len(kernel) or strides[at] < 1:
        return UNKNOWN
    room = dim + pads[at] + pads[at + len(kernel)] - (kernel[at] - 1) * dilations[at] - 1
    return room // strides[at] + 1 if room >= 0 else UNKNOWN
