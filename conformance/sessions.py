"""What sessions of all checks have in common: they run on the CPU, and say nothing about models that are meant to fail."""

import hashlib
from typing import Any

import numpy as np
import onnxruntime as ort

__all__ = ["CPU", "SILENT", "digest_of", "quiet_options"]

CPU = ["CPUExecutionProvider"]
SILENT = 4
"""ONNX Runtime's log level for fatal errors alone."""


def quiet_options(threads: int = 1) -> ort.SessionOptions:
    """Options that keep ONNX Runtime's complaints off the terminal."""
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads
    return options


def digest_of(session: Any) -> str:
    """Stands for the first output, bit by bit, for three rows of an input of any rank."""
    entry = session.get_inputs()[0]
    *_, width = entry.shape
    x = np.linspace(-1, 1, 3 * width, dtype=np.float32).reshape(*[1] * (len(entry.shape) - 2), 3, width)
    return hashlib.sha256(session.run(None, {entry.name: x})[0].tobytes()).hexdigest()
