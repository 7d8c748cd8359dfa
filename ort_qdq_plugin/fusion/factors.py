"""What dequantized values are multiplied by: constant expressions that broadcast to the weight as it is stored.

Factors are of float, whatever the model computes in: a float16 scale times a factor may leave float16's range where that
times an integer does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.folding.building import elementwise, inverse, reshaped, spread, transposed
from ort_qdq_plugin.folding.elements import numpy_type
from ort_qdq_plugin.folding.expression import Elementwise, Expression
from ort_qdq_plugin.fusion.view import View
from ort_qdq_plugin.model.elements import BFLOAT16, FLOAT, SCALE_TYPES
from ort_qdq_plugin.report.weights import Reason

__all__ = [
    "as_floats", "broadcast", "constant", "divided", "factor_of", "multiplied", "varying_axes", "vector", "with_factor",
]  # fmt: skip


def as_floats(expression: Expression) -> Expression:
    """The same numbers in float; those of float, float16 and bfloat16 all are."""
    if expression.data_type == FLOAT:
        return expression
    widen = _widened_bfloat16 if expression.data_type == BFLOAT16 else _widened
    return elementwise("float of", widen, (expression,), FLOAT)


def multiplied(one: Expression, two: Expression) -> Expression:
    """The product, in float, of expressions that broadcast to each other."""
    return _in_float("Mul", np.multiply, one, two)


def divided(one: Expression, two: Expression) -> Expression:
    """The quotient, in float, of expressions that broadcast to each other."""
    return _in_float("Div", np.divide, one, two)


def constant(number: int, data_type: int, shape: Sequence[int]) -> Expression:
    """The same number everywhere."""
    return Elementwise(f"constant {number}", _same(number, data_type), (), data_type, tuple(shape))


def broadcast(expression: Expression, shape: Sequence[int]) -> Expression:
    """An expression in a shape of the same rank that it broadcasts to."""
    result = expression
    for axis, (size, wanted) in enumerate(zip(expression.shape, shape, strict=True)):
        if size != wanted:
            result = spread(result, axis, wanted, (*result.shape[:axis], wanted, *result.shape[axis + 1 :]))
    return result


def factor_of(given: Expression, view: View) -> Expression:
    """A constant that broadcasts to a view of a weight, as one of float that broadcasts to the weight as it is stored.

    Raises:
        NotFusable: It is no such constant, or gives the value more elements.
    """
    shape = view.shape
    if given.data_type != view.data_type or given.data_type not in SCALE_TYPES:
        raise NotFusable(Reason.PRODUCT_TYPE)
    sizes = (1,) * (len(shape) - len(given.shape)) + tuple(given.shape)
    if len(sizes) != len(shape) or any(size not in (1, whole) for size, whole in zip(sizes, shape, strict=True)):
        raise NotFusable(Reason.FACTOR)
    order = [axis for axes in view.axes for axis in axes]
    dims = [
        view.stored_shape[axis] if size != 1 else 1
        for axes, size in zip(view.axes, sizes, strict=True)
        for axis in axes
    ]  # fmt: skip
    stored = [1] * len(view.stored_shape)
    for axis, size in zip(order, dims, strict=True):
        stored[axis] = size
    return reshaped(transposed(reshaped(as_floats(given), tuple(dims)), inverse(order)), tuple(stored))


def varying_axes(factor: Expression) -> set[int]:
    """The axes along which it is not the same."""
    return {axis for axis, size in enumerate(factor.shape) if size != 1}


def with_factor(factors: tuple[Expression, ...], factor: Expression) -> tuple[Expression, ...]:
    """The factors and another one, which is multiplied onto one that varies along the same axes, or is a number, where
    there is such a one. So there are no more than axes allow, whatever multiplies the weight."""
    varying = varying_axes(factor)
    for at, other in enumerate(factors):
        others = varying_axes(other)
        if varying <= others or others <= varying:
            return (*factors[:at], multiplied(other, factor), *factors[at + 1 :])
    return (*factors, factor)


def vector(factor: Expression, axes: Sequence[int], shape: Sequence[int]) -> Expression:
    """A factor of a weight of this shape, which varies along these axes at most, as one number for each of their indices.

    The axes are in the order in which they are stored.
    """
    along = broadcast(factor, [size if axis in axes else 1 for axis, size in enumerate(shape)])
    return reshaped(along, (math.prod(shape[axis] for axis in axes),))


def _in_float(name: str, compute: Callable[..., np.ndarray], one: Expression, two: Expression) -> Expression:
    return elementwise(name, compute, (as_floats(one), as_floats(two)), FLOAT)


def _widened(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def _widened_bfloat16(values: np.ndarray) -> np.ndarray:
    # bfloat16 is the upper half of a float.
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)


@cache
def _same(number: int, data_type: int) -> Callable[..., np.ndarray]:
    # One function for each: equal expressions have equal keys.
    return lambda: np.asarray(number, numpy_type(data_type))
