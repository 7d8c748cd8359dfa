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


class TransposeSession:
    """Transposes matrices of elements of one size, on the calling thread; one for each thread.

    All share one session of ONNX Runtime's, which is made when it is first needed and kept: its telemetry counts sessions.
    """

    def __init__(self, element_bytes: int) -> None:
        self._element_bytes = element_bytes
        # ONNX and NumPy have the same name for an unsigned integer of that size.
        name = f"uint{8 * element_bytes}"
        data_type, place = CODES[name], (os.getpid(), element_bytes)
        self._kind = np.dtype(name).type
        with fork_lock:
            if place not in _sessions:
                _sessions[place] = _new_session(data_type)
        self._session = _sessions[place]
        self._binding = _native.SessionIOBinding(self._session)
        self._device = _native.OrtDevice(_native.OrtDevice.cpu(), _native.OrtDevice.default_memory(), 0)

    def transpose(self, matrix: np.ndarray, transposed: np.ndarray) -> None:
        """transposed = matrix.T for elements of several bytes; both arrays are uint8 and contiguous."""
        rows, columns = matrix.shape[0], matrix.shape[1] // self._element_bytes
        self._binding.bind_input("x", self._device, self._kind, (rows, columns), matrix.ctypes.data)
        self._binding.bind_output("y", self._device, self._kind, (columns, rows), transposed.ctypes.data)
        self._session.run_with_iobinding(self._binding, None)


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
