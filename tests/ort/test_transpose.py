"""ONNX Runtime's Transpose on plain memory, against NumPy's."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_qdq_plugin.ort.transpose import TransposeSession, _sessions
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


def test_threads_at_once() -> None:
    def work(seed: int) -> bool:
        session, matrix = TransposeSession(2), matrix_of(100 + seed, 300, 2)
        return all(np.array_equal(transposed(session, matrix, 2), plain(matrix, 2)) for _ in range(20))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(8)))


def test_all_share_one_session_for_a_size() -> None:
    before = len(_sessions)
    with ThreadPoolExecutor(4) as threads:
        assert len({id(made._session) for made in threads.map(lambda _: TransposeSession(8), range(8))}) == 1
    assert len(_sessions) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_makes_its_own() -> None:
    matrix = matrix_of(50, 300, 2)
    child = os.fork()
    if not child:
        session = TransposeSession(2)
        right = session._session is not SESSIONS[2]._session and np.array_equal(
            transposed(session, matrix, 2), plain(matrix, 2)
        )
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("element_bytes", [0, 3, 16])
def test_other_sizes_of_elements(element_bytes: int) -> None:
    with pytest.raises(KeyError):
        TransposeSession(element_bytes)
