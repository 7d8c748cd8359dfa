"""What may stand between a matrix and its reader beside views, as random models have it: parts, multiples and joints."""

import random
from collections.abc import Callable

import numpy as np

from conformance.drawing.draft import Draft
from conformance.drawing.elements import FLOATS, raw_float, raw_tensor

__all__ = ["way"]

Made = tuple[str, list[int]]
"""A value, and its shape."""


def _range(dice: random.Random, size: int) -> tuple[int, int]:
    """A part of an axis: mostly one that begins and ends where blocks may."""
    step = dice.choice((1, 16, 32, 32))
    bounds = sorted(dice.randrange(0, size + 1, step) for _ in range(2))
    return (bounds[0], bounds[1]) if bounds[0] < bounds[1] else (0, size)


def _split(d: Draft, dice: random.Random, value: str, kind: str, shape: list[int]) -> Made:
    axis = dice.randrange(2)
    start, end = _range(dice, shape[axis])
    lengths = [length for length in (start, end - start, shape[axis] - end) if length]
    output = d.node("Split", [value, d.ints(f"{value}_lengths{len(d.nodes)}", lengths)], axis=axis)
    names = [output, *(f"{output}_{at}" for at in range(1, len(lengths)))]
    d.nodes[-1].output[:] = names
    at = dice.randrange(len(lengths))
    return names[at], [lengths[at] if i == axis else size for i, size in enumerate(shape)]


def _slice(d: Draft, dice: random.Random, value: str, kind: str, shape: list[int]) -> Made:
    axis = dice.randrange(2)
    start, end = _range(dice, shape[axis])
    step = dice.choice((1, 1, 1, 2))
    number = len(d.nodes)
    numbers = [d.ints(f"{value}_{name}{number}", [at]) for name, at in zip("beas", (start, end, axis, step), strict=True)]
    left = len(range(start, end, step))
    return d.node("Slice", [value, *numbers]), [left if i == axis else size for i, size in enumerate(shape)]


def _gather(d: Draft, dice: random.Random, value: str, kind: str, shape: list[int]) -> Made:
    axis = dice.randrange(2)
    indices = [dice.randrange(-shape[axis], shape[axis]) for _ in range(dice.randrange(1, min(shape[axis], 8) + 1))]
    taken = d.node("Gather", [value, d.ints(f"{value}_i{len(d.nodes)}", indices)], axis=axis)
    return taken, [len(indices) if i == axis else size for i, size in enumerate(shape)]


def _multiple(d: Draft, dice: random.Random, value: str, kind: str, shape: list[int]) -> Made:
    of = dice.choice(([], [1], [shape[1]], [1, shape[1]], [shape[0], 1]))
    values = d.rng.uniform(0.25, 4, tuple(of))
    factor = d.constant(raw_tensor(f"{value}_f{len(d.nodes)}", FLOATS[kind], of, raw_float(np.asarray(values), kind)))
    if dice.random() < 0.3:
        return d.node("Div", [value, factor]), shape
    return d.node("Mul", dice.choice(([value, factor], [factor, value]))), shape


def _joint(d: Draft, dice: random.Random, value: str, kind: str, shape: list[int]) -> Made:
    axis = dice.randrange(2)
    return d.node("Concat", [value, value], axis=axis), [2 * size if i == axis else size for i, size in enumerate(shape)]


_WAYS: tuple[Callable[[Draft, random.Random, str, str, list[int]], Made], ...] = (
    _split, _slice, _gather, _multiple, _multiple, _joint,
)  # fmt: skip


def way(d: Draft, dice: random.Random, value: str, kind: str, shape: list[int]) -> Made:
    """Adds a node that reads a matrix of this type and shape: what it makes of it, which is a matrix again."""
    return dice.choice(_WAYS)(d, dice, value, kind, shape)
