"""The table of element types, line by line against the installed onnx package."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from ort_qdq_plugin.model import elements
from ort_qdq_plugin.model.elements import ELEMENTS, SCALE_TYPES, WEIGHT_TYPES, bits_of, top_bits

BELOW_A_BYTE = {"uint4": 4, "int4": 4, "float4e2m1": 4, "uint2": 2, "int2": 2}  # NumPy gives each a byte


def test_the_table_has_all_types_of_a_fixed_size() -> None:
    assert set(ELEMENTS) == set(range(1, 27)) - {TensorProto.STRING}


@pytest.mark.parametrize("data_type", ELEMENTS)
def test_types_are_as_onnx_has_them(data_type: int) -> None:
    element = ELEMENTS[data_type]
    name = TensorProto.DataType.Name(data_type).lower()
    assert element.name == name
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    assert bits_of(data_type) == BELOW_A_BYTE.get(name, dtype.itemsize * 8)
    # ml_dtypes adds types to NumPy, which are not of NumPy's own module.
    assert (element.numpy and np.dtype(element.numpy)) == (dtype if dtype.type.__module__ == "numpy" else "")


def test_weights_are_integers_that_matmul_nbits_takes() -> None:
    signs = {ELEMENTS[code].name: ELEMENTS[code].weight for code in WEIGHT_TYPES}
    assert signs == {
        **{f"uint{bits}": "unsigned" for bits in (2, 4, 8)},
        **{f"int{bits}": "signed" for bits in (2, 4, 8)},
    }


def test_scales_are_floats_of_32_and_16_bits() -> None:
    assert {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16} == SCALE_TYPES


@pytest.mark.parametrize("name", ["FLOAT", "FLOAT16", "BFLOAT16", "UINT8", "INT8", "INT64", "UINT4", "INT4"])
def test_names_stand_for_the_types_that_onnx_calls_so(name: str) -> None:
    assert getattr(elements, name) == TensorProto.DataType.Value(name)


@pytest.mark.parametrize(("bits", "byte"), [(2, 0xAA), (4, 0x88), (8, 0x80)])
def test_the_top_bits_of_the_elements_in_a_byte(bits: int, byte: int) -> None:
    assert top_bits(bits) == byte


@pytest.mark.parametrize("data_type", [TensorProto.UNDEFINED, TensorProto.STRING, 27, 99, -1])
def test_types_without_a_size_have_no_bits(data_type: int) -> None:
    with pytest.raises(KeyError):
        bits_of(data_type)
