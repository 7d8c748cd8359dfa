"""Expressions as tensors: their bytes, read in parts of any kind, compared with what NumPy makes of whole arrays."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.drawing.elements import raw_quantized
from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.folding import computed as computed_module
from ort_qdq_plugin.folding.computed import as_expression, as_tensor, stored_in
from ort_qdq_plugin.folding.expression import Sliced, Stored, Transposed
from ort_qdq_plugin.model.elements import ELEMENTS
from tests.folding.drawn import Drawn, expressions
from tests.folding.support import constant
from tests.fusion.support import locate

KINDS = ("float", "int64", "float16", "int8", "uint8", "int4", "uint4", "int2", "uint2")


@settings(max_examples=250, deadline=None)
@given(drawn=expressions(KINDS), data=st.data(), piece=st.sampled_from([8, 16, 64, 1 << 17]))
def test_bytes_from_anywhere(drawn: Drawn, data: st.DataObject, piece: int) -> None:
    bits = ELEMENTS[drawn.expression.data_type].bits
    wanted = np.frombuffer(raw_quantized(drawn.array, bits) if bits < 8 else drawn.array.tobytes(), np.uint8)
    with mock.patch.multiple(computed_module, _PIECE=piece, _TRANSPOSED_PIECE=piece):
        tensor = as_tensor(drawn.expression, "t")
        assert (tensor.nbytes, tensor.shape, tensor.elements) == (wanted.size, drawn.array.shape, drawn.array.size)
        np.testing.assert_array_equal(tensor.read(), wanted)
        for _ in range(3):
            start = data.draw(st.integers(0, wanted.size - 1))
            part = np.empty(data.draw(st.integers(1, wanted.size - start)), np.uint8)
            tensor.read_range(start, part)
            np.testing.assert_array_equal(part, wanted[start : start + part.size])


def test_a_tensor_remembers_its_expression() -> None:
    stored = locate(constant("a", np.ones((2, 3)), "int8"))
    assert as_tensor(Stored(stored), "b") is stored
    assert as_expression(stored) == Stored(stored)
    expression = Transposed(Stored(stored), (1, 0))
    tensor = as_tensor(expression, "b")
    assert as_expression(tensor) is expression
    # Seen in another way, it is what is stored there, for whoever asks.
    other = tensor._replace(shape=(6,))
    assert as_expression(other) == Stored(other)
    assert list(stored_in(tensor)) == [stored]
    assert list(stored_in(stored)) == [stored]
    assert list(stored_in(tensor.part(1))) == [stored], "a part is computed from the same"


def test_equal_expressions_are_the_same_storage() -> None:
    stored = locate(constant("a", np.ones((2, 3)), "int8"))
    one, two = (as_tensor(Transposed(Stored(stored), (1, 0)), name) for name in "bc")
    assert one.storage == two.storage
    assert one.storage != as_tensor(Transposed(Transposed(Stored(stored), (1, 0)), (1, 0)), "d").storage
    assert not one.is_aligned  # so that it is packed


def test_nobody_borrows_what_is_computed() -> None:
    source = as_tensor(Transposed(Stored(locate(constant("a", np.ones((2, 3)), "int8"))), (1, 0)), "t").source
    source.check_unchanged()
    source.close()
    with pytest.raises(ModelError, match="t: computed"):
        source.buffer()


def test_nothing_is_no_tensor() -> None:
    empty = Sliced(Stored(locate(constant("a", np.ones(3), "int8"))), 0, 0, 1, 0)
    with pytest.raises(ModelError):
        as_tensor(empty, "t")
