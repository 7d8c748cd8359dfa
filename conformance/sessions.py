"""What sessions of all checks have in common: they run on the CPU, and say nothing about models that are meant to fail."""

from __future__ import annotations

import onnxruntime as ort

__all__ = ["CPU", "SILENT", "quiet_options"]

CPU = ["CPUExecutionProvider"]
SILENT = 4
"""ONNX Runtime's log level for fatal errors alone."""


def quiet_options(threads: int = 1) -> ort.SessionOptions:
    """Options that keep ONNX Runtime's complaints off the terminal."""
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads
    return options
