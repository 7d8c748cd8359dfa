"""The transposer, element by element."""

from __future__ import annotations

from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_qdq_plugin.packing import bits as bits_module
from ort_qdq_plugin.packing.bits import Transposer, pack_elements, unpack_elements
from tests.packing.plain import elements_of, packed_rows, raw_bytes


@settings(max_examples=150, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 8, 16, 32]),
    rows=st.integers(1, 150),
    columns=st.integers(1, 150),
    flip=st.booleans(),
    panel=st.sampled_from([1, 2048, 768 << 10]),
    least=st.sampled_from([4, 64]),
    seed=st.integers(0, 99),
)
def test_transposed(bits: int, rows: int, columns: int, flip: bool, panel: int, least: int, seed: int) -> None:
    per = max(1, 8 // bits)
    rows, columns = -(-rows // per) * per, -(-columns // per) * per
    flip = flip and bits <= 8
    elements = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns))
    matrix = packed_rows(elements, bits, columns * bits // 8)
    wanted = packed_rows((elements ^ (1 << bits - 1) if flip else elements).T, bits, rows * bits // 8)
    with mock.patch.object(bits_module, "_PANEL_BYTES", panel), mock.patch.object(bits_module, "_MIN_PANEL_COLUMNS", least):
        result = np.zeros_like(wanted)
        seen = 0
        for first, lines in Transposer().transposed(matrix, bits, flip):
            assert first == seen
            result[first : first + len(lines)] = lines
            seen += len(lines)
    assert seen == columns
    np.testing.assert_array_equal(result, wanted)


def test_one_transposer_takes_matrices_of_all_kinds_in_turn() -> None:
    rng = np.random.default_rng(0)
    transposer = Transposer()
    for bits, rows, columns in [(4, 64, 32), (32, 7, 5), (2, 4, 400), (16, 1, 9), (8, 300, 3), (4, 2, 2)]:
        elements = rng.integers(0, 1 << bits, (rows, columns))
        matrix = packed_rows(elements, bits, columns * bits // 8)
        lines = np.concatenate([part.copy() for _, part in transposer.transposed(matrix, bits, False)])
        np.testing.assert_array_equal(lines, packed_rows(elements.T, bits, rows * bits // 8))


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([2, 4, 8]), lines=st.integers(1, 9), length=st.integers(1, 40), seed=st.integers(0, 99))
def test_pack_and_unpack_elements(bits: int, lines: int, length: int, seed: int) -> None:
    elements = np.random.default_rng(seed).integers(0, 1 << bits, (lines, length)).astype(np.uint8)
    packed = pack_elements(elements, bits)
    np.testing.assert_array_equal(packed, packed_rows(elements, bits, -(-length * bits // 8)))
    np.testing.assert_array_equal(unpack_elements(packed, bits)[:, :length], elements)


def test_the_reference_agrees_with_onnx() -> None:
    """Packing the obvious way is what onnx itself does."""
    from onnx import TensorProto, helper

    elements = np.arange(-8, 7)
    tensor = helper.make_tensor("w", TensorProto.INT4, [15], elements.tolist())
    assert raw_bytes(elements, 4) == bytes(value & 0xFF for value in tensor.int32_data)
    np.testing.assert_array_equal(elements_of(raw_bytes(elements, 4), 4, 15), elements & 15)
