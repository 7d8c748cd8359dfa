"""ONNX Runtime's Transpose kernel, run on plain memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import _pybind_state as _native

from ort_qdq_plugin.model.elements import CODES
from ort_qdq_plugin.model.encoding import small_model
from ort_qdq_plugin.system.forks import fork_lock

__all__ = ["TransposeSession"]

_WARNINGS_OFF = 3  # OrtLoggingLevel: errors only


# By process and size of elements. A forked child makes its own: another thread may have been running the parent's. Those
# stay where they are, since destroying one might wait for such a thread.
_sessions: dict[tuple[int, int], Any] = {}

# So many bytes NumPy transposes, for each size of elements, before there is a session: it takes less time than making one.
_NUMPY_BYTES = 1 << 20
_by_numpy: dict[tuple[int, int], int] = {}  # what it has, by process and size


class TransposeSession:
    """Transposes matrices of elements of one size, on the calling thread; one for each thread.

    All share one session of ONNX Runtime's, which is made when it is first needed and kept: its telemetry counts sessions.
    NumPy is slower, but transposes the first few bytes of a process in less time than it takes to make that.
    """

    def __init__(self, element_bytes: int) -> None:
        # ONNX and NumPy have the same name for an unsigned integer of that size.
        self._element_bytes, self._name = element_bytes, f"uint{8 * element_bytes}"
        CODES[self._name]  # KeyError for another size
        self._kind = np.dtype(self._name).type
        self._session: Any = None

    def transpose(self, matrix: np.ndarray, transposed: np.ndarray) -> None:
        """transposed = matrix.T for elements of several bytes; both arrays are uint8 and contiguous.

        Of `transposed` only the bytes count, not how they are divided into rows.
        """
        rows, columns = matrix.shape[0], matrix.shape[1] // self._element_bytes
        if self._session is None and self._is_for_numpy(matrix.nbytes):
            np.copyto(transposed.reshape(-1).view(self._kind).reshape(columns, rows), matrix.view(self._kind).T)
            return
        if self._session is None:
            self._open()
        self._binding.bind_input("x", self._device, self._kind, (rows, columns), matrix.ctypes.data)
        self._binding.bind_output("y", self._device, self._kind, (columns, rows), transposed.ctypes.data)
        self._session.run_with_iobinding(self._binding, None)

    def _is_for_numpy(self, nbytes: int) -> bool:
        place = os.getpid(), self._element_bytes
        if place in _sessions:
            return False
        # Threads may do it at once, and NumPy a little more than it should.
        _by_numpy[place] = done = _by_numpy.get(place, 0) + nbytes
        return done <= _NUMPY_BYTES

    def _open(self) -> None:
        place = os.getpid(), self._element_bytes
        with fork_lock:
            if place not in _sessions:
                _sessions[place] = _new_session(CODES[self._name])
        session = _sessions[place]
        self._binding = _native.SessionIOBinding(session)
        self._device = _native.OrtDevice(_native.OrtDevice.cpu(), _native.OrtDevice.default_memory(), 0)
        self._session = session


def _new_session(data_type: int) -> Any:
    model = small_model("Transpose", data_type=data_type, dims=("rows", "columns"), perm=(1, 0))
    options = onnxruntime.SessionOptions()
    # The caller's threads are the parallelism. A pool of the session's own would only compete with them.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _WARNINGS_OFF
    # The native class: where the package is activated, an InferenceSession would come back to it.
    session = _native.InferenceSession(options, model, False, False)
    session.initialize_session(["CPUExecutionProvider"], [{}], set())
    return session
