"""Whether the optimizer of ONNX Runtime that fuses QDQ nodes runs in a session."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnxruntime

from ort_qdq_plugin.ort.keys import DISABLED_KEY, NO_QDQ_KEY, config_entry

__all__ = ["qdq_is_fused"]

_QDQ_OPTIMIZER = "QDQSelectorActionTransformer"


def qdq_is_fused(session_options: Any | None, disabled_optimizers: Collection[str] | None) -> bool:
    """Whether a session lets ONNX Runtime fuse QDQ nodes.

    Args:
        session_options: Its onnxruntime.SessionOptions, if it has any.
        disabled_optimizers: The argument of this name of onnxruntime.InferenceSession.
    """
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    below = session_options is not None and session_options.graph_optimization_level.value < level.value
    # ONNX Runtime takes the names in the entry as they are, spaces too, and none of them if the argument has names.
    disabled = disabled_optimizers or (config_entry(session_options, DISABLED_KEY) or "").split(";")
    return not (below or config_entry(session_options, NO_QDQ_KEY) == "1" or _QDQ_OPTIMIZER in disabled)
