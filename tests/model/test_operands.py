"""Operands: which of them are their source's own bytes, which can be used in place, and which are the same."""

from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ort_qdq_plugin.model.elements import FLOAT, FLOAT16, UINT4, UINT8
from ort_qdq_plugin.model.operands import (
    Conversion,
    Operand,
    Order,
    as_stored,
    borrowed_bytes,
    packed_bytes,
    zeros,
)
from tests.packing.plain import operands, packed_lines, stored


def matrix(**changed: Any) -> Operand:
    """Four lines of 16 elements of 4 bits, as they are stored."""
    operand = Operand(UINT8, (4, 8), lines=4, length=16, line_bytes=8, source=stored(UINT4, (4, 16)), bits=4)
    return operand._replace(**changed)


@pytest.mark.parametrize(("length", "repeat", "wanted"), [(16, 1, 16), (16, 4, 4), (17, 4, 5), (3, 4, 1)])
def test_repeated_elements_are_fewer_in_the_source(length: int, repeat: int, wanted: int) -> None:
    assert matrix(length=length, repeat=repeat).stored_length == wanted


CHANGED: dict[str, dict[str, Any]] = {
    "transposed": {"order": Order.TRANSPOSED}, "spread": {"order": Order.SPREAD}, "flipped": {"flip": True},
    "repeated": {"repeat": 2}, "converted": {"conversion": Conversion(FLOAT, FLOAT)}, "zeros": {"source": None},
    "widened": {"widening": 0},
    "of another size": {"source": stored(UINT4, (4, 15))}, "lines that are padded": {"length": 15},
}  # fmt: skip


def test_bytes_as_they_are_stored_are_a_copy() -> None:
    operand = matrix()
    assert operand.is_copy
    assert operand.in_place is operand.source
    single = operand.as_bytes()
    assert single.is_copy
    assert (single.nbytes, single.source) == (operand.nbytes, operand.source)
    assert (single.lines, single.length, single.line_bytes, single.bits) == (32, 1, 1, 8)


@pytest.mark.parametrize("name", CHANGED)
def test_what_changes_the_bytes_makes_it_no_copy(name: str) -> None:
    assert not matrix(**CHANGED[name]).is_copy
    assert matrix(**CHANGED[name]).in_place is None


@settings(max_examples=300, deadline=None)
@given(operand=operands(st.integers(1, 9), st.just(0), dirty=False))
def test_a_copy_has_its_sources_bytes(operand: Operand) -> None:
    assert operand.nbytes == operand.lines * operand.line_bytes
    changed = operand.flip or operand.repeat > 1 or (operand.conversion, operand.widening) != (None, None)
    if operand.is_copy:
        event("copy")
        assert operand.source is not None
        assert packed_lines(operand).tobytes() == operand.source.read().tobytes()
    elif operand.order is Order.ROWS and not changed:
        # Only a line that ends within a byte, or before its last one, has to be moved.
        line_bits = operand.length * operand.bits
        assert line_bits % 8 or line_bits < 8 * operand.line_bytes


@pytest.mark.parametrize("shape", [(16, 1), (1, 16)])
def test_a_matrix_of_one_row_or_column_is_its_own_transpose(shape: tuple[int, int]) -> None:
    length, lines = shape
    operand = matrix(source=stored(UINT8, shape), bits=8, order=Order.TRANSPOSED, lines=lines, length=length)
    assert operand._replace(line_bytes=length).is_copy


@pytest.mark.parametrize(("offset", "data_type", "in_place"), [
    (0, FLOAT, True), (4, FLOAT, True), (2, FLOAT, False), (2, FLOAT16, True), (1, FLOAT16, False), (1, UINT4, True),
])  # fmt: skip
def test_only_aligned_elements_are_used_in_place(offset: int, data_type: int, in_place: bool) -> None:
    operand = as_stored(stored(data_type, (3, 5), offset=offset), (3, 5))
    assert operand.is_copy
    assert (operand.in_place is operand.source) == in_place
    counted = (operand.nbytes, 0) if in_place else (0, operand.nbytes)
    assert (borrowed_bytes([operand]), packed_bytes([operand])) == counted


@pytest.mark.parametrize(("offset", "in_place"), [(0, True), (64, True), (16, False), (40, False)])
def test_what_kernels_read_aligned_is_used_in_place_where_it_is(offset: int, in_place: bool) -> None:
    tensor = stored(UINT8, (3, 32), offset=offset)
    operand = as_stored(tensor, (3, 32))
    assert operand.in_place is tensor
    assert operand._replace(alignment=32).in_place is (tensor if in_place else None)


@pytest.mark.parametrize(("data_type", "nbytes"), [(UINT4, 8), (UINT8, 15), (FLOAT, 60)])
def test_a_stored_tensor_as_an_operand(data_type: int, nbytes: int) -> None:
    tensor = stored(data_type, (3, 5))
    operand = as_stored(tensor, (15, 1))
    assert (operand.data_type, operand.shape, operand.nbytes) == (data_type, (15, 1), nbytes)
    assert operand.in_place is tensor


def test_bytes_of_both_kinds_are_summed() -> None:
    many = [matrix(), matrix(flip=True), zeros(UINT8, 5), matrix()]
    assert (borrowed_bytes(many), packed_bytes(many)) == (2 * 4 * 8, 4 * 8 + 5)


def test_zeros_are_a_row_of_nothing() -> None:
    operand = zeros(UINT8, 7)
    assert (operand.data_type, operand.shape, operand.nbytes, operand.source) == (UINT8, (7,), 7, None)
    assert operand.in_place is None


# Which are the same


def test_the_same_of_the_same_bytes_has_the_same_key() -> None:
    one, other = stored(UINT4, (4, 16)), stored(UINT4, (4, 16))
    assert matrix(source=one).key == matrix(source=other._replace(name="other")).key
    assert zeros(UINT8, 7).key == zeros(UINT8, 7).key
    assert matrix(shape=(4, 2, 4)).key == matrix().key


OTHERS: dict[str, dict[str, Any]] = {
    **CHANGED,
    "other bytes": {"source": stored(UINT4, (4, 16), seed=1)},
    "the same bytes elsewhere": {"source": stored(UINT4, (4, 16), offset=1)},
    "another type": {"data_type": UINT4}, "other lines": {"lines": 2},
    "other bits": {"bits": 2}, "lines of other bytes": {"line_bytes": 9},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_made_otherwise_has_another_key(name: str) -> None:
    assert matrix(**OTHERS[name]).key != matrix().key
