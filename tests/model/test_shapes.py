"""Shapes that a model states, and the arithmetic of dimensions."""

import pytest
from onnx import TensorProto, helper

from ort_qdq_plugin.model.shapes import UNKNOWN, Shape, broadcast, multiplied, stated_shapes


def test_what_an_input_says_counts_where_it_is_an_output_too() -> None:
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape) for shape in ([4, None, 128], [100, 4])]
    assert stated_shapes(helper.make_graph([], "g", values[:1], values[1:])) == {"x": (4, None, 128)}


@pytest.mark.parametrize(
    ("shapes", "together"),
    [
        ([], ()), ([(2, 3)], (2, 3)), ([(2, 1), (3,)], (2, 3)), ([(None, 1), (1, 4)], (None, 4)), ([(None,), (5,)], (5,)),
        ([(UNKNOWN,), (None,)], (UNKNOWN,)), ([(UNKNOWN,), (5,)], (5,)), ([(1,), (1,)], (1,)), ([(0,), (1,)], (0,)),
    ],
)  # fmt: skip
def test_broadcasting(shapes: list[Shape], together: Shape) -> None:
    assert broadcast(shapes) == together


@pytest.mark.parametrize(
    ("dims", "product"),
    [((), 1), ((2, 3), 6), ((0, 3), 0), ((2, None), None), ((UNKNOWN, 2), UNKNOWN), ((UNKNOWN, None), None)],
)
def test_products_of_dimensions(dims: Shape, product: int | None) -> None:
    assert multiplied(dims) == product
