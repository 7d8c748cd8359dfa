"""The transposer, element by element."""

from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ort_qdq_plugin.folding.elements import pack_elements, unpack_elements
from ort_qdq_plugin.packing import bits as bits_module
from ort_qdq_plugin.packing.bits import Transposer, widen_elements
from tests.packing.plain import elements_of, packed_rows, raw_bytes

sizes = st.integers(1, 150)
matrices = st.tuples(st.sampled_from([2, 4, 8, 16, 32]), sizes, sizes, st.booleans())


@settings(max_examples=120, deadline=None)
@given(
    many=st.lists(matrices, min_size=1, max_size=3),
    panel=st.sampled_from([1, 2048, 768 << 10]),
    least=st.sampled_from([4, 64]),
    seed=st.integers(0, 99),
)
def test_transposed_one_after_another(many: list[tuple[int, int, int, bool]], panel: int, least: int, seed: int) -> None:
    transposer = Transposer()
    for bits, some_rows, some_columns, flipped in many:
        per = max(1, 8 // bits)
        rows, columns = -(-some_rows // per) * per, -(-some_columns // per) * per
        flip = flipped and bits <= 8
        elements = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns))
        matrix = packed_rows(elements, bits, columns * bits // 8)
        wanted = packed_rows((elements ^ (1 << bits - 1) if flip else elements).T, bits, rows * bits // 8)
        with mock.patch.multiple(bits_module, _PANEL_BYTES=panel, _MIN_PANEL_COLUMNS=least):
            result = np.zeros_like(wanted)
            seen = 0
            for first, lines in transposer.transposed(matrix, bits, flip):
                assert first == seen
                result[first : first + len(lines)] = lines
                seen += len(lines)
        assert seen == columns
        np.testing.assert_array_equal(result, wanted)


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([2, 4, 8]), lines=st.integers(1, 9), length=st.integers(1, 40), seed=st.integers(0, 99))
def test_pack_and_unpack_elements(bits: int, lines: int, length: int, seed: int) -> None:
    elements = np.random.default_rng(seed).integers(0, 1 << bits, (lines, length)).astype(np.uint8)
    packed = pack_elements(elements, bits)
    np.testing.assert_array_equal(packed, packed_rows(elements, bits, -(-length * bits // 8)))
    np.testing.assert_array_equal(unpack_elements(packed, bits)[:, :length], elements)


@settings(max_examples=120, deadline=None)
@given(
    bits=st.sampled_from([2, 4]), lines=st.integers(1, 9), count=st.integers(1, 70), added=st.integers(0, 12),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_elements_get_twice_their_bits(bits: int, lines: int, count: int, added: int, seed: int) -> None:
    """From lines that go on after those that are wanted."""
    rng = np.random.default_rng(seed)
    elements = rng.integers(0, 1 << bits, (lines, count + 5))
    packed = packed_rows(elements, bits, -(-(count + 5) * bits // 8))
    wanted = packed_rows(elements[:, :count] + added, 2 * bits, -(-count * bits // 4))
    np.testing.assert_array_equal(widen_elements(packed, count, bits, added), wanted)


def test_the_reference_agrees_with_onnx() -> None:
    """Packing the obvious way is what onnx itself does."""
    elements = np.arange(-8, 7)
    tensor = helper.make_tensor("w", TensorProto.INT4, [15], elements.tolist())
    assert raw_bytes(elements, 4) == bytes(value & 0xFF for value in tensor.int32_data)
    np.testing.assert_array_equal(elements_of(raw_bytes(elements, 4), 4, 15), elements & 15)
