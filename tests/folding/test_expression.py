"""Boxes of drawn expressions, compared with the same part of what NumPy makes of whole arrays."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_qdq_plugin.errors import NotComputedError
from ort_qdq_plugin.folding import expression as expression_module
from ort_qdq_plugin.folding.boxes import whole
from ort_qdq_plugin.folding.expression import Elementwise, Reshaped, Stored, Taken, Transposed, key_of, leaves
from tests.folding.drawn import Drawn, boxes_in, expressions
from tests.folding.support import constant
from tests.fusion.support import locate


@settings(max_examples=250, deadline=None)
@given(drawn=expressions(), data=st.data())
def test_boxes_are_parts_of_the_whole(drawn: Drawn, data: st.DataObject) -> None:
    expression, array = drawn
    assert expression.shape == array.shape
    all_of_it = expression.values(whole(expression.shape))
    assert all_of_it.dtype == array.dtype
    np.testing.assert_array_equal(all_of_it, array)
    for _ in range(3):
        box = data.draw(boxes_in(array.shape))
        np.testing.assert_array_equal(expression.values(box), array[tuple(slice(*bounds) for bounds in box)])


@settings(max_examples=100, deadline=None)
@given(one=expressions(("int8",)), two=expressions(("int8",)))
def test_keys_are_equal_only_for_what_is_equal(one: Drawn, two: Drawn) -> None:
    if key_of(one.expression) == key_of(two.expression):
        np.testing.assert_array_equal(one.array, two.array)
    assert hash(key_of(one.expression)) == hash(key_of(one.expression))


def test_what_is_made_twice_in_the_same_way_has_one_key() -> None:
    def made(name: str = "Add", perm: tuple[int, ...] = (1, 0), values: int = 1) -> Elementwise:
        leaf = Stored(locate(constant("a", np.full((2, 3), values), "int8")))
        return Elementwise(name, lambda a, b: a + b, (leaf, Transposed(Transposed(leaf, perm), perm)), 3, (2, 3))

    assert key_of(made()) == key_of(made())
    assert len({key_of(made()), key_of(made("Sub")), key_of(made(perm=(0, 1))), key_of(made(values=2))}) == 4


def test_leaves_are_the_stored_tensors() -> None:
    one, two = (Stored(locate(constant(name, np.ones((2, 3)), "int8"))) for name in "ab")
    both = Elementwise("Add", np.add, (one, Transposed(Taken(two, 0, np.array([1, 0]).tobytes()), (0, 1)), one), 3, (2, 3))
    assert [tensor.name for tensor in leaves(both)] == ["a", "b", "a"]


def test_what_would_take_far_more_than_is_asked_for_is_not_computed() -> None:
    """A column of a matrix whose rows lie across those of the stored one."""
    leaf = Stored(locate(constant("a", np.arange(35), "int8")))
    torn = Reshaped(Reshaped(leaf, (5, 7)), (7, 5))
    with mock.patch.object(expression_module, "_MOST_AROUND", 20), pytest.raises(NotComputedError):
        torn.values(((0, 7), (0, 1)))
    np.testing.assert_array_equal(torn.values(((0, 7), (0, 1))), np.arange(0, 35, 5).reshape(7, 1))


def test_rows_of_which_most_is_wanted_are_read_at_once() -> None:
    tensor = locate(constant("a", np.arange(40).reshape(8, 5), "int8"))
    reads: list[int] = []
    noted = mock.Mock(wraps=tensor.source, identity=0)

    def read(offset: int, target: memoryview) -> None:
        reads.append(len(target))
        tensor.source.read_into(offset, target)

    noted.read_into.side_effect = read
    leaf = Stored(tensor._replace(source=noted))
    for columns, counts in (((1, 4), [40]), ((1, 3), [2] * 8), ((0, 5), [40])):
        reads.clear()
        np.testing.assert_array_equal(leaf.values(((0, 8), columns)), np.arange(40).reshape(8, 5)[:, slice(*columns)])
        assert reads == counts
