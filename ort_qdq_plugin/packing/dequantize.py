"""Dequantizing stored integers, some elements at a time: what ONNX Runtime's DequantizeLinear gives, to the last bit.

It computes ``(x - zero_point) * scale`` in float, whatever the types of scale and result, and rounds that to the result's
type. Tests compare all types with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ort_qdq_plugin.folding.elements import elements_of
from ort_qdq_plugin.model.elements import ELEMENTS
from ort_qdq_plugin.model.operands import Dequantization, Operand
from ort_qdq_plugin.model.tensors import StoredTensor

__all__ = ["BYTES_PER_ELEMENT", "dequantized_values", "pieces"]

BYTES_PER_ELEMENT = 24
"""At most this much memory is taken for each element that is dequantized at once: integers, scales and zero points spread
over the elements, and the result."""


def pieces(operand: Operand, most: int) -> Iterator[tuple[int, int]]:
    """Cut an operand's elements into ranges (first, last) of at most `most`, each a box of the array [outer, size, inner].

    That is some whole outer indices; or some indices of the middle axis of one of them; or a part of one of these.
    """
    how = _shape(operand)
    outer_step = how.size * how.inner
    for step, within in ((outer_step, operand.lines), (how.inner, outer_step), (1, how.inner)):
        if step <= most:
            length = most // step * step
            for start in range(0, operand.lines, within):
                for first in range(start, start + within, length):
                    yield first, min(first + length, start + within)
            return


def dequantized_values(operand: Operand, first: int, last: int) -> np.ndarray:
    """The values of the elements of one of `pieces`, uint8 [elements, bytes of a value].

    Raises:
        SourceChangedError, SourceUnreadableError, OSError: They cannot be read.
    """
    source, how = operand.source, _shape(operand)
    assert source is not None
    count, outer_step = last - first, how.size * how.inner
    if first % outer_step == 0 and count % outer_step == 0:
        box = (count // outer_step, how.size, how.inner)
    elif first % how.inner == 0 and count % how.inner == 0:
        box = (1, count // how.inner, how.inner)
    else:
        box = (1, 1, count)
    values = elements_of(source, first, count).astype(np.float32).reshape(box)
    with np.errstate(all="ignore"):
        if how.zero_points is not None:
            # Exact: differences of 16-bit integers are. Those of 32 bits have no zero points but 0.
            values -= _spread(how.zero_points, how, first, box)
        values *= _spread(how.scales, how, first, box)
        result: np.ndarray = values.astype(ELEMENTS[operand.data_type].numpy, copy=False)
    return result.reshape(-1, 1).view(np.uint8)


def _shape(operand: Operand) -> Dequantization:
    assert operand.dequantization is not None
    return operand.dequantization


def _spread(tensor: StoredTensor, how: Dequantization, first: int, box: tuple[int, int, int]) -> np.ndarray:
    """Scales or zero points of a box of elements from `first` on, as floats that broadcast to the box."""
    if tensor.elements == 1:
        return elements_of(tensor, 0, 1).astype(np.float32)
    outer, rest = divmod(first, how.size * how.inner)
    start, inner = divmod(rest, how.inner)
    outers, size, inners = box
    if not how.block:
        return elements_of(tensor, start, size).astype(np.float32).reshape(1, size, 1)
    blocks, at = -(-how.size // how.block), start // how.block
    taken = -(-(start + size) // how.block) - at
    values = elements_of(tensor, (outer * blocks + at) * how.inner + inner, outers * taken * inners).astype(np.float32)
    spread: np.ndarray = values.reshape(outers, taken, inners)[:, np.arange(start, start + size) // how.block - at]
    return spread
