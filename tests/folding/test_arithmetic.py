"""Functions of elements: the rest of what they do is compared with ONNX Runtime's kernels in `fusion/test_computing.py`."""

import numpy as np
import pytest

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.folding.arithmetic import cast, clip, dequantize, quantize
from ort_qdq_plugin.model.elements import CODES, FLOAT, INT8
from tests.support import Array


def test_operands_are_left_as_they_are() -> None:
    """They may be views of what others read."""
    values = np.array([[1.5, -300.0], [2.5, 0.25]], np.float32)
    scales, zero_points = np.array([0.5, 2.0], np.float32), np.array([1, -1], np.int8)
    integers = values.astype(np.int8)
    operands = (values, scales, zero_points, integers)
    before = [operand.copy() for operand in operands]
    quantize(INT8)(values, scales, zero_points)
    dequantize(INT8, FLOAT)(integers, scales, zero_points)
    clip(True, True)(values, np.float32(0), np.float32(1))
    cast(FLOAT, CODES["float16"])(values)
    for operand, was in zip(operands, before, strict=True):
        np.testing.assert_array_equal(operand, was)


@pytest.mark.parametrize(
    ("value", "wanted"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (300, 127), (-300, -128), (1e9, 127)]
)
def test_quantizing_rounds_half_to_even_and_saturates(value: float, wanted: int) -> None:
    result: Array = quantize(INT8)(np.array([value], np.float32), np.array(1, np.float32))
    assert result.dtype == np.int8
    assert result.tolist() == [wanted]


@pytest.mark.parametrize(
    ("source", "target"), [("bool", "int8"), ("float", "bool"), ("bfloat16", "float"), ("float", "float8e8m0")]
)
def test_types_that_are_not_cast(source: str, target: str) -> None:
    with pytest.raises(ModelError):
        cast(CODES[source], CODES[target])
