"""ONNX Runtime's Transpose on plain memory, against NumPy's."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_qdq_plugin.ort.transpose import TransposeSession
from tests.support import Array

SESSIONS = {size: TransposeSession(size) for size in (1, 2, 4, 8)}


def matrix_of(rows: int, columns: int, element_bytes: int) -> Array:
    return np.random.default_rng(rows * columns).integers(0, 256, (rows, columns * element_bytes)).astype(np.uint8)


def transposed(session: TransposeSession, matrix: Array, element_bytes: int) -> Array:
    rows, columns = matrix.shape[0], matrix.shape[1] // element_bytes
    # Bytes behind the result show whether more than that is written.
    memory = np.full(columns * rows * element_bytes + 64, 0xA5, np.uint8)
    target = memory[:-64].reshape(columns, rows * element_bytes)
    session.transpose(matrix, target)
    assert (memory[-64:] == 0xA5).all()
    return np.asarray(target)


def plain(matrix: Array, element_bytes: int) -> Array:
    elements = matrix.reshape(matrix.shape[0], -1, element_bytes)
    return np.asarray(elements.transpose(1, 0, 2).reshape(elements.shape[1], -1))


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([*SESSIONS]))
def test_as_numpy_does(rows: int, columns: int, element_bytes: int) -> None:
    matrix = matrix_of(rows, columns, element_bytes)
    kept = matrix.copy()
    np.testing.assert_array_equal(transposed(SESSIONS[element_bytes], matrix, element_bytes), plain(matrix, element_bytes))
    np.testing.assert_array_equal(matrix, kept)


def test_each_thread_has_a_session() -> None:
    def work(seed: int) -> bool:
        session, matrix = TransposeSession(2), matrix_of(100 + seed, 300, 2)
        return all(np.array_equal(transposed(session, matrix, 2), plain(matrix, 2)) for _ in range(20))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(8)))


@pytest.mark.parametrize("element_bytes", [0, 3, 16])
def test_other_sizes_of_elements(element_bytes: int) -> None:
    with pytest.raises(KeyError):
        TransposeSession(element_bytes)
