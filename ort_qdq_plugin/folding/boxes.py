"""Boxes: parts of tensors, and where their elements lie when the tensor is cut, or has another shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

__all__ = ["Box", "boxes_of", "covering_box", "covering_run", "groups_of_axes", "replaced", "sizes_of", "whole"]

Box = tuple[tuple[int, int], ...]
"""A part of a tensor: for each axis the first index, and the one behind the last."""


def whole(shape: Sequence[int]) -> Box:
    """The box that is all of a tensor."""
    return tuple((0, size) for size in shape)


def boxes_of(shape: Sequence[int], first: int, last: int, most: int) -> Iterator[Box]:
    """Cut elements first..last of a tensor, one row after the other, into boxes of at most `most`, in the same order."""
    if not shape:
        if first < last:
            yield ()
        return
    inner = math.prod(shape[1:])
    while first < last:
        index, within = divmod(first, inner)
        if within or inner > most or last - first < inner:
            # A part of one index of the first axis.
            end = min(last, (index + 1) * inner)
            for box in boxes_of(shape[1:], within, end - index * inner, most):
                yield ((index, index + 1), *box)
            first = end
        else:
            count = min((last - first) // inner, most // inner)
            yield ((index, index + count), *whole(shape[1:]))
            first += count * inner


def sizes_of(box: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(last - first for first, last in box)


def replaced(box: Box, axis: int, bounds: tuple[int, int]) -> Box:
    """The box with other bounds along an axis."""
    return (*box[:axis], bounds, *box[axis + 1 :])


def groups_of_axes(one: Sequence[int], two: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """The axes of two shapes of the same elements, in the smallest groups of neighbours that have as many on both sides."""
    mine = theirs = 0
    while mine < len(one) or theirs < len(two):
        start, other = mine, theirs
        product_one = product_two = 1
        while (start, other) == (mine, theirs) or product_one != product_two:
            if mine < len(one) and (product_one <= product_two or theirs == len(two)):
                product_one *= one[mine]
                mine += 1
            else:
                product_two *= two[theirs]
                theirs += 1
        yield slice(start, mine), slice(other, theirs)


def covering_run(box: Sequence[tuple[int, int]], shape: Sequence[int]) -> tuple[int, int]:
    """The first and the last element of a box, counted row by row: (first, last + 1)."""
    first = last = 0
    for (start, end), size in zip(box, shape, strict=True):
        first, last = first * size + start, last * size + end - 1
    return first, last + 1


def covering_box(run: tuple[int, int], shape: Sequence[int]) -> list[tuple[int, int]]:
    """The smallest box, whole in its inner axes, that has these elements."""
    if not shape:
        return []
    inner = math.prod(shape[1:])
    first, last = run[0] // inner, -(-run[1] // inner)
    if last - first > 1:
        return [(first, last), *whole(shape[1:])]
    return [(first, last), *covering_box((run[0] - first * inner, run[1] - first * inner), shape[1:])]
