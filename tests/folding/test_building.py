"""What puts axes into another order comes last; and it is the same tensor."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.folding.boxes import whole
from ort_qdq_plugin.folding.building import (
    concatenated,
    elementwise,
    inverse,
    reshaped,
    sliced,
    spread,
    taken,
    transposed,
    unordered,
)
from ort_qdq_plugin.folding.expression import Elementwise, Expression, Reshaped, Sliced, Stored, Taken, Transposed
from tests.folding.drawn import Drawn, expressions
from tests.folding.support import constant
from tests.fusion.support import locate


def leaf(*shape: int) -> Stored:
    return Stored(locate(constant("a", np.arange(int(np.prod(shape))).reshape(shape), "int8")))


def holds_a_transpose(expression: Expression) -> bool:
    return isinstance(expression, Transposed) or any(map(holds_a_transpose, expression.operands))


MATRIX = transposed(leaf(4, 6), (1, 0))
MOVED: dict[str, Expression] = {
    "a function": elementwise("Neg", np.negative, [MATRIX], 3),
    "a function with a column": elementwise("Add", np.add, [MATRIX, leaf(6, 1)], 3),
    "a function with a row": elementwise("Add", np.add, [leaf(4), MATRIX], 3),
    "a function with a number": elementwise("Add", np.add, [MATRIX, leaf()], 3),
    "a function with blocks": elementwise("Add", np.add, [MATRIX, spread(leaf(3, 4), 0, 2, (6, 4))], 3),
    "a slice": sliced(MATRIX, 0, 1, 2, 3),
    "a part": taken(MATRIX, 1, [3, 0]),
    "several": concatenated([MATRIX, MATRIX], 1),
    "axes put in": reshaped(MATRIX, (1, 6, 1, 4)),
    "an axis split": reshaped(MATRIX, (2, 3, 4)),
    "axes put together": reshaped(transposed(leaf(4, 2, 3), (1, 2, 0)), (6, 4)),
    "two of them": transposed(transposed(leaf(2, 3, 4), (1, 2, 0)), (2, 1, 0)),
}


@pytest.mark.parametrize("form", MOVED)
def test_the_transpose_comes_last(form: str) -> None:
    expression = MOVED[form]
    assert isinstance(expression, Transposed)
    inner, perm = unordered(expression)
    big = [operand for operand in inner.operands if np.prod(operand.shape) >= np.prod(inner.shape)]
    assert not any(map(holds_a_transpose, big)) or form == "a function with blocks"
    np.testing.assert_array_equal(
        inner.values(whole(inner.shape)).transpose(perm), expression.values(whole(expression.shape))
    )


def test_what_is_nothing_is_not_built() -> None:
    matrix = leaf(4, 6)
    assert transposed(matrix, (0, 1)) is reshaped(matrix, (4, 6)) is sliced(matrix, 1, 0, 1, 6) is concatenated([matrix], 0)
    assert transposed(transposed(matrix, (1, 0)), (1, 0)) is matrix
    assert reshaped(reshaped(matrix, (2, 12)), (4, 6)) == matrix
    assert unordered(matrix) == (matrix, (0, 1))


def test_what_stays_where_it_is() -> None:
    """Axes that a Reshape puts together across a Transpose."""
    assert isinstance(reshaped(MATRIX, (24,)), Reshaped)
    assert isinstance(reshaped(MATRIX, (3, 8)), Reshaped)
    added = elementwise("Add", np.add, [leaf(6, 4), transposed(leaf(1, 6), (1, 0))], 3)
    assert isinstance(added, Elementwise)


def test_large_steps_take_index_by_index() -> None:
    assert isinstance(sliced(leaf(100), 0, 0, 9, 2), Taken)
    assert isinstance(sliced(leaf(100), 0, 0, 8, 2), Sliced)
    assert isinstance(sliced(leaf(100), 0, 5, 50, 1), Sliced)


@given(perm=st.permutations(range(5)))
def test_an_order_is_undone(perm: list[int]) -> None:
    assert [perm[axis] for axis in inverse(perm)] == list(range(5))


@settings(max_examples=200, deadline=None)
@given(drawn=expressions(), data=st.data())
def test_any_shape_of_any_expression(drawn: Drawn, data: st.DataObject) -> None:
    shape = data.draw(st.permutations(drawn.array.shape))
    expression = reshaped(drawn.expression, tuple(shape))
    np.testing.assert_array_equal(expression.values(whole(expression.shape)), drawn.array.reshape(shape))


def test_what_does_not_fit() -> None:
    with pytest.raises(ModelError):
        reshaped(leaf(4, 6), (5, 5))
    with pytest.raises(ModelError):
        reshaped(leaf(1), (1,) * 65)
    with pytest.raises(ModelError):
        elementwise("Add", np.add, [leaf(4), leaf(3)], 3)
    with pytest.raises(ModelError):
        taken(leaf(4), 0, [0] * (1 << 17))
