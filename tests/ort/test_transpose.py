"""ONNX Runtime's Transpose on plain memory, against NumPy's."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ort_qdq_plugin.ort import transpose as module
from ort_qdq_plugin.ort.transpose import TransposeSession, _sessions
from tests.support import Array

SESSIONS = {size: TransposeSession(size) for size in (1, 2, 4, 8)}


def matrix_of(rows: int, columns: int, element_bytes: int) -> Array:
    return np.random.default_rng(rows * columns).integers(0, 256, (rows, columns * element_bytes)).astype(np.uint8)


def transposed(session: TransposeSession, matrix: Array, element_bytes: int) -> Array:
    rows, columns = matrix.shape[0], matrix.shape[1] // element_bytes
    # Bytes behind the result show whether more than that is written.
    memory = np.full(columns * rows * element_bytes + 64, 0xA5, np.uint8)
    session.transpose(matrix, memory[:-64].reshape(-1, 1))
    assert (memory[-64:] == 0xA5).all()
    return np.asarray(memory[:-64].reshape(columns, rows * element_bytes))


def plain(matrix: Array, element_bytes: int) -> Array:
    elements = matrix.reshape(matrix.shape[0], -1, element_bytes)
    return np.asarray(elements.transpose(1, 0, 2).reshape(elements.shape[1], -1))


@pytest.fixture(autouse=True)
def not_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NUMPY_BYTES", 0)


@pytest.mark.parametrize("numpy_bytes", [0, 1 << 40])
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([*SESSIONS]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_as_numpy_does(numpy_bytes: int, rows: int, columns: int, element_bytes: int) -> None:
    matrix = matrix_of(rows, columns, element_bytes)
    kept = matrix.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_NUMPY_BYTES", numpy_bytes)
        patch.setattr(module, "_sessions", {} if numpy_bytes else _sessions)
        session = TransposeSession(element_bytes) if numpy_bytes else SESSIONS[element_bytes]
        np.testing.assert_array_equal(transposed(session, matrix, element_bytes), plain(matrix, element_bytes))
        assert (session._session is None) == bool(numpy_bytes)
    np.testing.assert_array_equal(matrix, kept)


def test_numpy_does_the_first_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that have elements of one size together; nobody makes a session before."""
    monkeypatch.setattr(module, "_NUMPY_BYTES", 1000)
    monkeypatch.setattr(module, "_sessions", {})
    monkeypatch.setattr(module, "_by_numpy", {})
    matrix, made = matrix_of(10, 20, 2), [TransposeSession(2) for _ in range(4)]
    for session, has_made in zip(made, (False, False, True, True), strict=True):
        np.testing.assert_array_equal(transposed(session, matrix, 2), plain(matrix, 2))
        assert bool(module._sessions) == has_made
    # Also those that did without before.
    np.testing.assert_array_equal(transposed(made[0], matrix, 2), plain(matrix, 2))
    assert made[0]._session is made[3]._session


def test_threads_at_once() -> None:
    def work(seed: int) -> bool:
        session, matrix = TransposeSession(2), matrix_of(100 + seed, 300, 2)
        return all(np.array_equal(transposed(session, matrix, 2), plain(matrix, 2)) for _ in range(20))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(8)))


def test_all_share_one_session_for_a_size() -> None:
    def used(_: int) -> TransposeSession:
        transposed(session := TransposeSession(8), matrix_of(2, 2, 8), 8)
        return session

    used(0)
    before = len(_sessions)
    with ThreadPoolExecutor(4) as threads:
        assert len({id(made._session) for made in threads.map(used, range(8))}) == 1
    assert len(_sessions) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_makes_its_own() -> None:
    matrix = matrix_of(50, 300, 2)
    transposed(SESSIONS[2], matrix, 2)
    child = os.fork()
    if not child:
        session = TransposeSession(2)
        right = np.array_equal(transposed(session, matrix, 2), plain(matrix, 2))
        os._exit(0 if right and session._session is not SESSIONS[2]._session else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("element_bytes", [0, 3, 16])
def test_other_sizes_of_elements(element_bytes: int) -> None:
    with pytest.raises(KeyError):
        TransposeSession(element_bytes)
