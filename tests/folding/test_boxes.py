"""Boxes, compared with numbering every element."""

import math
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ort_qdq_plugin.folding.boxes import (
    Box,
    boxes_of,
    covering_box,
    covering_run,
    groups_of_axes,
    replaced,
    sizes_of,
    whole,
)
from tests.support import Array

shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@st.composite
def boxes_in(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    """A box that has elements."""
    firsts = [draw(st.integers(0, size - 1)) for size in shape]
    return tuple((first, draw(st.integers(first + 1, size))) for first, size in zip(firsts, shape, strict=True))


def numbered(shape: tuple[int, ...], box: Box | list[tuple[int, int]]) -> Array:
    """The numbers of a box's elements, counted row by row."""
    numbers: Array = np.arange(math.prod(shape)).reshape(shape)[tuple(slice(*bounds) for bounds in box)]
    return numbers.reshape(-1)


@given(shape=shapes, data=st.data(), most=st.integers(1, 50))
def test_a_run_is_cut_into_boxes(shape: tuple[int, ...], data: st.DataObject, most: int) -> None:
    first = data.draw(st.integers(0, math.prod(shape)))
    last = data.draw(st.integers(first, math.prod(shape)))
    parts = [numbered(shape, box) for box in boxes_of(shape, first, last, most)]
    assert all(0 < part.size <= most for part in parts)
    assert np.concatenate([np.arange(0), *parts]).tolist() == list(range(first, last))


@given(data=st.data(), shape=shapes)
def test_a_box_lies_in_its_run_and_a_run_in_its_box(data: st.DataObject, shape: tuple[int, ...]) -> None:
    box = data.draw(boxes_in(shape))
    numbers = numbered(shape, box)
    assert sizes_of(box) == tuple(last - first for first, last in box)
    run = covering_run(box, shape)
    assert run == (numbers.min(), numbers.max() + 1)
    around = covering_box(run, shape)
    assert set(range(*run)) <= set(numbered(shape, around).tolist())
    start, end = covering_run(around, shape)
    assert end - start == math.prod(sizes_of(around))  # that box is a run itself


@given(data=st.data(), elements=st.lists(st.sampled_from([1, 2, 3, 4]), max_size=5))
def test_groups_of_axes(data: st.DataObject, elements: list[int]) -> None:
    def merged() -> list[int]:
        """The same elements with some neighbouring axes made one, and some of size 1 put in."""
        cuts = sorted({0, len(elements), *data.draw(st.lists(st.integers(0, len(elements))))})
        sizes = [math.prod(elements[start:end]) for start, end in pairwise(cuts)] if elements else []
        return [size for one in sizes for size in (one, *[1] * data.draw(st.integers(0, 1)))]

    one, two = merged(), merged()
    groups = list(groups_of_axes(one, two))
    assert [size for mine, _ in groups for size in one[mine]] == one
    assert [size for _, theirs in groups for size in two[theirs]] == two
    assert all(math.prod(one[mine]) == math.prod(two[theirs]) for mine, theirs in groups)


def test_other_bounds() -> None:
    assert replaced(whole((2, 3, 4)), 1, (1, 2)) == ((0, 2), (1, 2), (0, 4))
