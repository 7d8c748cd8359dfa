"""Whether the optimizer of ONNX Runtime that fuses QDQ nodes runs in a session."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnxruntime

from ort_qdq_plugin.ort.keys import DISABLED_KEY, NO_QDQ_KEY, config_entry

__all__ = ["qdq_is_fused", "why_qdq_is_not_fused"]

_QDQ_OPTIMIZER = "QDQSelectorActionTransformer"


def qdq_is_fused(session_options: Any | None, disabled_optimizers: Collection[str] | None) -> bool:
    """Whether a session lets ONNX Runtime fuse QDQ nodes.

    Args:
        session_options: Its onnxruntime.SessionOptions, if it has any.
        disabled_optimizers: The argument of this name of onnxruntime.InferenceSession.
    """
    return not why_qdq_is_not_fused(session_options, disabled_optimizers)


def why_qdq_is_not_fused(session_options: Any | None, disabled_optimizers: Collection[str] | None) -> str:
    """By which of its options a session lets ONNX Runtime fuse no QDQ nodes; "" if it does. Arguments as above."""
    wanted = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    level = wanted if session_options is None else session_options.graph_optimization_level
    if level.value < wanted.value:
        return f"graph_optimization_level is {level.name}, below {wanted.name}"
    if config_entry(session_options, NO_QDQ_KEY) == "1":
        return f"{NO_QDQ_KEY} is 1"
    # ONNX Runtime takes the names in the entry as they are, spaces too, and none of them if the argument has names.
    disabled = disabled_optimizers or (config_entry(session_options, DISABLED_KEY) or "").split(";")
    return f"the optimizer {_QDQ_OPTIMIZER} is disabled" if _QDQ_OPTIMIZER in disabled else ""
