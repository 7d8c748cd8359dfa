"""What scales the rows and the columns of a matrix, where that is more than its scales as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from ort_qdq_plugin.errors import NotFusable
from ort_qdq_plugin.folding.building import reshaped
from ort_qdq_plugin.folding.computed import as_expression, as_tensor
from ort_qdq_plugin.folding.expression import Expression
from ort_qdq_plugin.fusion.factors import as_floats, constant, multiplied, varying_axes, vector
from ort_qdq_plugin.model.elements import FLOAT
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.report.weights import Reason
from ort_qdq_plugin.values import NamedTuple

__all__ = ["Scaled", "Scaling", "scaling_of"]


class Scaled(NamedTuple):
    """A matrix: the shape of the stored weight, and which of its axes make up K and N, in the order of the weight."""

    shape: tuple[int, ...]
    k_axes: tuple[int, ...]
    n_axes: tuple[int, ...]
    k: int
    n: int
    k_major: bool


class Scaling(NamedTuple):
    """Scales, zero points and block size as `QuantizedMatrix` has them, and a number for each row, [K], if these differ."""

    scales: StoredTensor
    zero_points: StoredTensor | None
    block: int
    rows: Expression | None = None


def scaling_of(given: Scaling, axis: int | None, is_centred: bool, factors: Sequence[Expression], matrix: Scaled) -> Scaling:
    """What scales a matrix.

    Args:
        given: The weight's scales and zero points. Its block size is -1 where they are none of this matrix as they are: all
            of an axis shares a scale then, or each of its indices has one.
        axis: The axis of the scales, or None.
        is_centred: Whether zero points are not needed.
        factors: What the weight is multiplied by besides.
        matrix: How the product sees the weight.

    Raises:
        NotFusable: Something scales neither rows nor columns.
    """
    if given.block < 0:
        given = _of_rows_or_columns(given, axis, is_centred, matrix)
    rows, columns = [] if given.rows is None else [given.rows], list[Expression]()
    for factor in factors:
        varying = varying_axes(factor)
        if not varying:
            columns.append(reshaped(factor, ()))
        elif varying <= set(matrix.n_axes):
            columns.append(vector(factor, matrix.n_axes, matrix.shape))
        elif varying <= set(matrix.k_axes):
            rows.append(vector(factor, matrix.k_axes, matrix.shape))
        else:
            raise NotFusable(Reason.FACTOR)
    return given._replace(
        scales=_times_columns(given, reduce(multiplied, columns), matrix) if columns else given.scales,
        rows=reduce(multiplied, rows) if rows else None,
    )


def _of_rows_or_columns(given: Scaling, axis: int | None, is_centred: bool, matrix: Scaled) -> Scaling:
    """Scales that are a number for each column, or for each row."""
    scales, zero_points = given.scales, given.zero_points
    if len(scales.shape) == len(matrix.shape):
        dims = scales.shape
    else:
        dims = tuple(size if at == axis else 1 for at, size in enumerate(matrix.shape))
    along = reshaped(as_expression(scales), dims)
    if varying_axes(along) <= set(matrix.n_axes):
        if zero_points is not None:
            shaped = reshaped(as_expression(zero_points), dims)
            zero_points = as_tensor(vector(shaped, matrix.n_axes, matrix.shape), zero_points.name)
        return Scaling(as_tensor(vector(along, matrix.n_axes, matrix.shape), scales.name), zero_points, 0)
    if varying_axes(along) <= set(matrix.k_axes) and (zero_points is None or is_centred):
        one = as_tensor(constant(1, FLOAT, ()), scales.name)
        return Scaling(one, None, 0, rows=as_floats(vector(along, matrix.k_axes, matrix.shape)))
    raise NotFusable(Reason.BLOCKS_ALONG_N)


def _times_columns(given: Scaling, factor: Expression, matrix: Scaled) -> StoredTensor:
    """The scales of a matrix times the factors of its columns."""
    scales = as_expression(given.scales)
    if given.block:
        blocks = -(-matrix.k // given.block)
        scales = reshaped(scales, (blocks, matrix.n) if matrix.k_major else (matrix.n, blocks))
        factor = factor if matrix.k_major or not factor.shape else reshaped(factor, (matrix.n, 1))
    return as_tensor(multiplied(scales, factor), given.scales.name)
