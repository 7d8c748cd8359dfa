"""Names that ONNX Runtime gives things: config entries of SessionOptions (onnxruntime_session_options_config_keys.h), the
method that makes a session, and operators. This module does not import it."""

from __future__ import annotations

import os
from typing import Any

__all__ = [
    "ACCURACY_KEY",
    "BLOCK_SIZE_KEY",
    "COMPILE_KEY",
    "CREATE_METHOD",
    "DIRECT_KEY",
    "DISABLED_KEY",
    "EXTENSIONS_DOMAIN",
    "FOLDER_KEY",
    "FORMAT_KEY",
    "INT8_KEY",
    "LOW_BIT_OPERATORS",
    "NO_QDQ_KEY",
    "OPTIONS_IN_MODEL",
    "PARALLEL_KEY",
    "SAVED_DATA_KEY",
    "SAVED_SIZE_KEY",
    "SAVE_PREPACKED_KEY",
    "config_entry",
    "entry_to_put_back",
    "options_are_in_models",
]

ACCURACY_KEY = "session.qdq_matmulnbits_accuracy_level"
BLOCK_SIZE_KEY = "session.qdq_matmulnbits_block_size"
COMPILE_KEY = "ep.context_enable"
DIRECT_KEY = "session.use_external_initializer_file_buffers_directly"
DISABLED_KEY = "optimization.disable_specified_optimizers"
FOLDER_KEY = "session.model_external_initializers_file_folder_path"
FORMAT_KEY = "session.load_model_format"
INT8_KEY = "session.qdqisint8allowed"
NO_QDQ_KEY = "session.disable_quant_qdq"
PARALLEL_KEY = "session.prepack.enable_parallel"
SAVED_DATA_KEY = "session.optimized_model_external_initializers_file_name"
SAVED_SIZE_KEY = "session.optimized_model_external_initializers_min_size_in_bytes"
SAVE_PREPACKED_KEY = "session.save_external_prepacked_constant_initializers"

# Entries that ONNX Runtime does not take if they are empty, and what it takes where there are none.
_DEFAULTS = {ACCURACY_KEY: "4", BLOCK_SIZE_KEY: "0"}

CREATE_METHOD = "_create_inference_session"
"""Of InferenceSession: it creates the native session."""

EXTENSIONS_DOMAIN = "ai.onnx.contrib"
"""Of the operators of onnxruntime-extensions."""

LOW_BIT_OPERATORS = ("MatMulNBits", "GatherBlockQuantized", "QMoE")
"""Operators with weights of few bits, which fused nodes are, and which models may hold already."""

OPTIONS_IN_MODEL = "ort_config"
"""Key of a model's metadata under which session options may be."""


def config_entry(session_options: Any | None, key: str) -> str | None:
    """The entry of an onnxruntime.SessionOptions; None if it is not set."""
    if session_options is None:
        return None
    try:
        value = session_options.get_session_config_entry(key)
    except RuntimeError:  # how it says that there is no such entry
        return None
    return value if isinstance(value, str) else None


def entry_to_put_back(session_options: Any, key: str) -> str:
    """What an entry has to be set to after a change, so that it means what it means now. It cannot be removed any more."""
    before = config_entry(session_options, key)
    return _DEFAULTS.get(key, "") if before is None else before


def options_are_in_models() -> bool:
    """Whether a variable of the environment makes ONNX Runtime take session options from a model's metadata."""
    return os.environ.get("ORT_LOAD_CONFIG_FROM_MODEL") == "1"
