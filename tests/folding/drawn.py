"""Drawn expressions, each with the array that it stands for: NumPy's own functions of whole arrays."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from ort_qdq_plugin.folding.building import concatenated, elementwise, reshaped, sliced, spread, taken, transposed
from ort_qdq_plugin.folding.expression import Concatenated, Expression, Reshaped, Sliced, Stored, Taken, Transposed
from tests.folding.support import constant, values_of
from tests.fusion.support import locate
from tests.support import Array

__all__ = ["Drawn", "boxes_in", "expressions"]


class Drawn(NamedTuple):
    expression: Expression
    array: Array  # what it is


@st.composite
def boxes_in(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """A box that has elements."""
    firsts = [draw(st.integers(0, size - 1)) for size in shape]
    return tuple((first, draw(st.integers(first + 1, size))) for first, size in zip(firsts, shape, strict=True))


@st.composite
def leaf(draw: st.DrawFn, kinds: tuple[str, ...]) -> Drawn:
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    kind = draw(st.sampled_from(kinds))
    values = values_of(kind, shape, draw(st.integers(0, 99)))
    return Drawn(Stored(locate(constant("leaf", values, kind))), values)


def _divisions(shape: tuple[int, ...], draw: st.DrawFn) -> tuple[int, ...]:
    """Another shape with as many elements."""
    sizes: list[int] = []
    left = math.prod(shape)
    while left > 1 and len(sizes) < 4:
        size = draw(st.sampled_from([size for size in range(1, left + 1) if left % size == 0]))
        sizes.append(size)
        left //= size
    return (*sizes, left)


def _reshape(given: Drawn, draw: st.DrawFn, plain: bool) -> Drawn:
    shape = _divisions(given.array.shape, draw)
    made = Reshaped(given.expression, shape) if plain else reshaped(given.expression, shape)
    return Drawn(made, given.array.reshape(shape))


def _transpose(given: Drawn, draw: st.DrawFn, plain: bool) -> Drawn:
    perm = tuple(draw(st.permutations(range(given.array.ndim))))
    made = Transposed(given.expression, perm) if plain else transposed(given.expression, perm)
    return Drawn(made, given.array.transpose(perm))


def _slice(given: Drawn, draw: st.DrawFn, plain: bool) -> Drawn:
    axis = draw(st.integers(0, given.array.ndim - 1))
    start = draw(st.integers(0, given.array.shape[axis] - 1))
    step = draw(st.sampled_from([1, 2, -1, -2, 12]))
    indices = range(start, given.array.shape[axis] if step > 0 else -1, step)
    length = draw(st.integers(1, len(indices)))
    made = (
        Sliced(given.expression, axis, start, step, length) if plain else sliced(given.expression, axis, start, step, length)
    )
    return Drawn(made, np.take(given.array, indices[:length], axis))


def _take(given: Drawn, draw: st.DrawFn, plain: bool) -> Drawn:
    axis = draw(st.integers(0, given.array.ndim - 1))
    indices = draw(st.lists(st.integers(0, given.array.shape[axis] - 1), min_size=1, max_size=6))
    made = Taken(given.expression, axis, np.array(indices).tobytes()) if plain else taken(given.expression, axis, indices)
    return Drawn(made, np.take(given.array, indices, axis))


def _repeat(given: Drawn, draw: st.DrawFn, plain: bool) -> Drawn:
    axis, count = draw(st.integers(0, given.array.ndim - 1)), draw(st.integers(1, 3))
    parts = [given.expression, *[transposed(given.expression, range(given.array.ndim))] * (count - 1)]
    made = Concatenated(tuple(parts), axis) if plain else concatenated(parts, axis)
    return Drawn(made, np.concatenate([given.array] * count, axis))


def _spread(given: Drawn, draw: st.DrawFn, _: bool) -> Drawn:
    axis, block = draw(st.integers(0, given.array.ndim - 1)), draw(st.integers(1, 4))
    repeated = np.repeat(given.array, block, axis)
    size = draw(st.integers(repeated.shape[axis] - block + 1, repeated.shape[axis]))
    shape = (*repeated.shape[:axis], size, *repeated.shape[axis + 1 :])
    return Drawn(spread(given.expression, axis, block, shape), np.take(repeated, range(size), axis))


def _function(given: Drawn, draw: st.DrawFn, _: bool) -> Drawn:
    """The product with something that broadcasts, on either side."""
    shape = [size if draw(st.booleans()) else 1 for size in given.array.shape]
    other = values_of("uint8", tuple(shape[draw(st.integers(0, len(shape))) :]), 7).astype(given.array.dtype)
    kind = {"f": "float", "i": "int8", "u": "uint8"}[given.array.dtype.kind]
    second = Stored(locate(constant("other", other, kind)))
    operands = [given.expression, second] if draw(st.booleans()) else [second, given.expression]
    return Drawn(elementwise("Mul", np.multiply, operands, given.expression.data_type), given.array * other)


_STEPS: tuple[Callable[[Drawn, st.DrawFn, bool], Drawn], ...] = (
    _reshape, _transpose, _slice, _take, _repeat, _spread, _function,
)  # fmt: skip
_MOST = 5000  # elements


@st.composite
def expressions(draw: st.DrawFn, kinds: tuple[str, ...] = ("float", "int8", "uint8")) -> Drawn:
    """Some steps, each as it would be built or as it is by itself. Functions are of types of 8 bits or more."""
    drawn = draw(leaf(kinds))
    for step in draw(st.lists(st.sampled_from(_STEPS), max_size=5)):
        if step is _function and drawn.expression.data_type not in (1, 2, 3):
            continue
        if (drawn.array.ndim and drawn.array.size < _MOST) or step in (_reshape, _transpose, _function):
            drawn = step(drawn, draw, draw(st.booleans()))
    return drawn
