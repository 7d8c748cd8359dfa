"""Casts and views of constant expressions, undone: the elements that were only given another type and shape."""

from __future__ import annotations

from ort_qdq_plugin.folding.building import reshaped, transposed
from ort_qdq_plugin.folding.expression import Elementwise, Expression, Reshaped, Transposed
from ort_qdq_plugin.model.elements import CODES, ELEMENTS, FLOAT, FLOAT16

__all__ = ["FLOATS", "core_of", "is_exact_cast"]

FLOATS = frozenset((FLOAT, FLOAT16, CODES["double"]))
"""Types that have all integers of 8 bits, and all differences of two of them."""


def core_of(value: Expression) -> Expression:
    """What a value is cast from without any change, in the value's shape."""
    if isinstance(value, Elementwise) and is_exact_cast(value):
        return core_of(value.operands[0])
    if isinstance(value, Reshaped):
        return reshaped(core_of(value.source), value.shape)
    if isinstance(value, Transposed):
        return transposed(core_of(value.source), value.perm)
    return value


def is_exact_cast(value: Elementwise) -> bool:
    """Whether a value is the Cast of one that has the same numbers, if these are the integers of a weight or differences."""
    if not value.name.startswith("Cast ") or value.shape != value.operands[0].shape:
        return False
    source, target = value.operands[0].data_type, value.data_type
    if target in FLOATS:
        return True
    if source in FLOATS or "int" not in ELEMENTS[source].name:
        return False
    (low, high), (lowest, highest) = (_range_of(one) for one in (source, target))
    return lowest <= low and high <= highest


def _range_of(data_type: int) -> tuple[int, int]:
    """The smallest and the largest integer of a type."""
    element = ELEMENTS[data_type]
    half = 1 << element.bits - 1
    return (0, 2 * half - 1) if element.name.startswith("u") else (-half, half - 1)
