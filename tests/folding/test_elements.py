"""Elements of stored tensors, compared with shifting them out one by one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ort_qdq_plugin.folding.elements import elements_of, numpy_type, pack_elements, unpack_elements
from ort_qdq_plugin.model.elements import CODES, ELEMENTS
from tests.folding.support import NUMPY, SMALL, constant, values_of
from tests.fusion.support import locate


@given(
    kind=st.sampled_from([*NUMPY, *SMALL]), count=st.integers(1, 40), data=st.data(), seed=st.integers(0, 9)
)  # fmt: skip
def test_elements_from_anywhere(kind: str, count: int, data: st.DataObject, seed: int) -> None:
    values = values_of(kind, (count,), seed)
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first + 1, count))
    taken = elements_of(locate(constant("a", values, kind)), first, last - first)
    assert taken.dtype == values.dtype
    np.testing.assert_array_equal(taken, values[first:last])


@given(bits=st.sampled_from([2, 4, 8]), shape=st.tuples(st.integers(1, 4), st.integers(1, 9)), seed=st.integers(0, 9))
def test_packing_is_low_bits_first(bits: int, shape: tuple[int, int], seed: int) -> None:
    elements = np.random.default_rng(seed).integers(0, 1 << bits, shape).astype(np.uint8)
    packed = pack_elements(elements, bits)
    per = 8 // bits
    assert packed.shape == (shape[0], -(-shape[1] // per))
    for (row, column), element in np.ndenumerate(elements):
        assert packed[row, column // per] >> column % per * bits & (1 << bits) - 1 == element
    np.testing.assert_array_equal(unpack_elements(packed, bits)[:, : shape[1]], elements)
    assert not unpack_elements(packed, bits)[:, shape[1] :].any()


@pytest.mark.parametrize(
    ("kind", "wanted"), [("int4", "int8"), ("uint2", "uint8"), ("bfloat16", "uint16"), ("float", "float32")]
)
def test_types_in_numpy(kind: str, wanted: Any) -> None:
    assert numpy_type(CODES[kind]) == wanted
    assert all(numpy_type(code).itemsize * 8 >= element.bits for code, element in ELEMENTS.items())
