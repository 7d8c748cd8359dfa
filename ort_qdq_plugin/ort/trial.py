"""Trying out an ONNX Runtime that is newer than what was tried: a session of two nodes, and the question of `copies`.

Whatever fails later, while a model is loaded, leaves that model to stock ONNX Runtime. This is for what would not fail.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import _pybind_state as _native

from ort_qdq_plugin.model.elements import FLOAT, UINT8
from ort_qdq_plugin.model.messages import ModelProto, made_node, made_tensor, refer
from ort_qdq_plugin.model.operators import CONTRIB_DOMAIN
from ort_qdq_plugin.ort.buffers import borrow
from ort_qdq_plugin.ort.copies import supplies_initializers
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.system.platform import host

__all__ = ["lends_files_when_tried", "problem_when_asked"]

_FATAL = 4  # OrtLoggingLevel
_FILE = "tried-out"  # what the model calls the file in memory

# z = x @ B + w, where B has one column, and w more elements than ONNX Runtime takes for a shape.
_K, _WIDTH = 32, 1024
_W = np.arange(_WIDTH, dtype="<f4")
_B = np.full(_K // 2, 0x98, np.uint8)  # elements are 8 and 9 in turns, and 8 stands for 0
_SCALES = np.full(1, 2, "<f4")
_PRODUCT = _K // 2 * 2.0  # of ones


def problem_when_asked() -> str:
    """Why this package does not get the answers that it relies on; "" if it does."""
    if supplies_initializers(onnxruntime.SessionOptions()):
        return "what was added to a session's options cannot be told"
    return ""


def lends_files_when_tried() -> bool | None:
    """Whether a write to a file in memory shows in a session's results. None: they are wrong without it.

    Raises:
        Exception: Of ONNX Runtime's.
    """
    data = b"".join(map(np.ndarray.tobytes, (_W, _B, _SCALES)))
    buffer = host.map_anonymous(len(data))
    buffer[:] = data
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    borrow(options, {_FILE: buffer})
    # As for any error of ONNX Runtime's that may come (`copies.supplies_initializers`).
    with fork_lock:
        session = _native.InferenceSession(options, _model(), False, False)
        session.initialize_session(["CPUExecutionProvider"], [{}], set())

    def results() -> np.ndarray:
        return np.asarray(session.run(["z"], {"x": np.ones((1, _K), np.float32)}, None)[0]).reshape(-1)

    if not np.array_equal(results(), _PRODUCT + _W):
        return None
    buffer[: _W.nbytes] = bytes(_W.nbytes)
    return bool(np.array_equal(results(), np.full(_WIDTH, _PRODUCT, np.float32)))


def _model() -> bytes:
    model = ModelProto(ir_version=8)
    model.opset_import.add(domain="", version=17)
    model.opset_import.add(domain=CONTRIB_DOMAIN, version=1)
    graph = model.graph
    graph.name = _FILE
    sizes: dict[str, Any] = {"K": _K, "N": 1, "bits": 4, "block_size": _K}
    graph.node.append(made_node("MatMulNBits", ["x", "B", "scales"], ["y"], domain=CONTRIB_DOMAIN, **sizes))
    graph.node.append(made_node("Add", ["y", "w"], ["z"]))
    offset = 0
    for name, data_type, shape, values in (
        ("w", FLOAT, (_WIDTH,), _W), ("B", UINT8, (1, 1, _K // 2), _B), ("scales", FLOAT, (1,), _SCALES),
    ):  # fmt: skip
        tensor = made_tensor(data_type, shape, b"", name)
        refer(tensor, _FILE, offset, values.nbytes)
        graph.initializer.append(tensor)
        offset += values.nbytes
    for values_of, name, size in ((graph.input, "x", _K), (graph.output, "z", _WIDTH)):
        value = values_of.add(name=name)
        value.type.tensor_type.elem_type = FLOAT
        for length in (1, size):
            value.type.tensor_type.shape.dim.add(dim_value=length)
    return bytes(model.SerializeToString())
