"""Operands: which of them are their source's own bytes, which can be used in place, and which are the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ort_qdq_plugin.model.elements import ELEMENTS, FLOAT, FLOAT16, UINT4, UINT8
from ort_qdq_plugin.model.operands import Conversion, Operand, Order, as_stored, borrowed_bytes, packed_bytes, zeros
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor
from tests.packing.plain import operand_lines, packed_rows

TYPES = {2: 25, 4: UINT4, 8: UINT8, 16: FLOAT16, 32: FLOAT}
"""Bits -> a TensorProto.DataType of so many."""


def stored(shape: tuple[int, ...], data_type: int = UINT4, offset: int = 0, seed: int = 0) -> StoredTensor:
    """Random bytes at `offset` of some memory; nothing is in the padding of the last one."""
    bits = ELEMENTS[data_type].bits
    elements = np.random.default_rng(seed).integers(0, 1 << bits, (1, math.prod(shape)))
    raw = packed_rows(elements, bits, -(-elements.size * bits // 8)).tobytes()
    return StoredTensor("t", data_type, shape, MemorySource(bytes(offset) + raw), offset, len(raw))


def matrix(**changed: Any) -> Operand:
    """Four lines of 16 elements of 4 bits, as they are stored."""
    operand = Operand(UINT8, (4, 8), lines=4, length=16, line_bytes=8, source=stored((4, 16)), bits=4)
    return operand._replace(**changed)


@pytest.mark.parametrize(("length", "repeat", "wanted"), [(16, 1, 16), (16, 4, 4), (17, 4, 5), (3, 4, 1)])
def test_repeated_elements_are_fewer_in_the_source(length: int, repeat: int, wanted: int) -> None:
    assert matrix(length=length, repeat=repeat).stored_length == wanted


CHANGED: dict[str, dict[str, Any]] = {
    "transposed": {"order": Order.TRANSPOSED},
    "spread": {"order": Order.SPREAD},
    "flipped": {"flip": True},
    "repeated": {"repeat": 2},
    "converted": {"conversion": Conversion(FLOAT, FLOAT, 2.0)},
    "zeros": {"source": None},
    "of another size": {"source": stored((4, 15))},
    "lines that are padded": {"length": 15},
}


def test_bytes_as_they_are_stored_are_a_copy() -> None:
    operand = matrix()
    assert operand.is_copy
    assert operand.in_place is operand.source


@pytest.mark.parametrize("name", CHANGED)
def test_what_changes_the_bytes_makes_it_no_copy(name: str) -> None:
    assert not matrix(**CHANGED[name]).is_copy
    assert matrix(**CHANGED[name]).in_place is None


@settings(max_examples=300, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 8, 16]),
    lines=st.integers(1, 6),
    length=st.integers(1, 9),
    order=st.sampled_from(Order),
    flip=st.booleans(),
    repeat=st.sampled_from([1, 1, 2]),
    padding=st.integers(0, 1),
)
def test_a_copy_has_its_sources_bytes(
    bits: int, lines: int, length: int, order: Order, flip: bool, repeat: int, padding: int
) -> None:
    of_line = -(-length // repeat)
    shape = {Order.ROWS: (lines, of_line), Order.TRANSPOSED: (of_line, lines), Order.SPREAD: (lines,)}[order]
    line_bytes = -(-length * bits // 8) + padding
    operand = Operand(
        UINT8, (lines * line_bytes,), lines, length, line_bytes, stored(shape, TYPES[bits]), order, bits, flip, repeat
    )
    assert operand.nbytes == lines * line_bytes
    if operand.is_copy:
        event("copy")
        assert operand.source is not None
        made = packed_rows(operand_lines(operand), bits, line_bytes)
        assert made.tobytes() == operand.source.read().tobytes()
    elif order is Order.ROWS and not flip and repeat == 1:
        # Only a line that ends within a byte, or before its last one, has to be moved.
        assert padding or length * bits % 8


@pytest.mark.parametrize("shape", [(16, 1), (1, 16)])
def test_a_matrix_of_one_row_or_column_is_its_own_transpose(shape: tuple[int, int]) -> None:
    length, lines = shape
    operand = matrix(source=stored(shape, UINT8), bits=8, order=Order.TRANSPOSED, lines=lines, length=length)
    assert operand._replace(line_bytes=length).is_copy


@pytest.mark.parametrize(("offset", "data_type", "in_place"), [
    (0, FLOAT, True), (4, FLOAT, True), (2, FLOAT, False), (2, FLOAT16, True), (1, FLOAT16, False), (1, UINT4, True),
])  # fmt: skip
def test_only_aligned_elements_are_used_in_place(offset: int, data_type: int, in_place: bool) -> None:
    operand = as_stored(stored((3, 5), data_type, offset), (3, 5))
    assert operand.is_copy
    assert (operand.in_place is operand.source) == in_place
    counted = (operand.nbytes, 0) if in_place else (0, operand.nbytes)
    assert (borrowed_bytes([operand]), packed_bytes([operand])) == counted


@pytest.mark.parametrize(("data_type", "nbytes"), [(UINT4, 8), (UINT8, 15), (FLOAT, 60)])
def test_a_stored_tensor_as_an_operand(data_type: int, nbytes: int) -> None:
    tensor = stored((3, 5), data_type)
    operand = as_stored(tensor, (15, 1))
    assert (operand.data_type, operand.shape, operand.nbytes) == (data_type, (15, 1), nbytes)
    assert operand.in_place is tensor


def test_bytes_of_both_kinds_are_summed() -> None:
    operands = [matrix(), matrix(flip=True), zeros(UINT8, 5), matrix()]
    assert borrowed_bytes(operands) == 2 * 4 * 8
    assert packed_bytes(operands) == 4 * 8 + 5


def test_a_copy_as_single_bytes() -> None:
    operand = matrix()
    single = operand.as_bytes()
    assert single.is_copy
    assert (single.nbytes, single.source) == (operand.nbytes, operand.source)
    assert (single.lines, single.length, single.line_bytes, single.bits) == (32, 1, 1, 8)


def test_zeros_are_a_row_of_nothing() -> None:
    operand = zeros(UINT8, 7)
    assert (operand.data_type, operand.shape, operand.nbytes, operand.source) == (UINT8, (7,), 7, None)
    assert operand.in_place is None


# Which are the same


def test_the_same_of_the_same_bytes_has_the_same_key() -> None:
    one, other = stored((4, 16)), stored((4, 16))
    assert matrix(source=one).key == matrix(source=other._replace(name="other")).key
    assert zeros(UINT8, 7).key == zeros(UINT8, 7).key


OTHERS: dict[str, dict[str, Any]] = {
    **CHANGED,
    "other bytes": {"source": stored((4, 16), seed=1)},
    "the same bytes elsewhere": {"source": stored((4, 16), offset=1)},
    "another type": {"data_type": UINT4},
    "another shape": {"shape": (4, 2, 4)},
    "other lines": {"lines": 2},
    "other bits": {"bits": 2},
    "lines of other bytes": {"line_bytes": 9},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_made_otherwise_has_another_key(name: str) -> None:
    assert matrix(**OTHERS[name]).key != matrix().key
