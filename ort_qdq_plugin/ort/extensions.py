"""onnxruntime-extensions: operators for tokenizers and the like; their library is registered where a model wants it.

It is optional: it has no wheel for every Python and system that ONNX Runtime has one for.
"""

from __future__ import annotations

import sys
from typing import Any

from ort_qdq_plugin.errors import QdqPluginError
from ort_qdq_plugin.ort.keys import EXTENSIONS_DOMAIN
from ort_qdq_plugin.system.forks import fork_lock

__all__ = ["MISSING_EXTENSIONS", "extensions_are_installed", "register_extensions"]

MISSING_EXTENSIONS = (
    f"the model has operators of onnxruntime-extensions ({EXTENSIONS_DOMAIN}), which is not installed: "
    "pip install onnxruntime-extensions, with a Python that it has a wheel for"
)
"""What to say where they are wanted."""

_MODULE = "onnxruntime_extensions"


def extensions_are_installed() -> bool:
    """Whether `register_extensions` may be called."""
    if _MODULE in sys.modules:
        return sys.modules[_MODULE] is not None
    with fork_lock:
        from importlib.util import find_spec
    return find_spec(_MODULE) is not None


def register_extensions(session_options: Any) -> None:
    """Register the installed library's operators with `session_options`.

    Raises:
        QdqPluginError: It is not installed.
    """
    try:
        with fork_lock:
            from onnxruntime_extensions import get_library_path
    except ImportError as error:
        raise QdqPluginError(MISSING_EXTENSIONS) from error
    session_options.register_custom_ops_library(get_library_path())
