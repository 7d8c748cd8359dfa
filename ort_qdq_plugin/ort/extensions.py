"""onnxruntime-extensions: operators for tokenizers and the like; their library is registered where a model wants it."""

from __future__ import annotations

from typing import Any

__all__ = ["EXTENSIONS_DOMAIN", "register_extensions"]

EXTENSIONS_DOMAIN = "ai.onnx.contrib"


def register_extensions(session_options: Any) -> None:
    """Register the installed library's operators with `session_options`."""
    from onnxruntime_extensions import get_library_path

    session_options.register_custom_ops_library(get_library_path())
