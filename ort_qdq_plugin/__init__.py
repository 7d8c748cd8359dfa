"""Load low-bit QDQ models in ONNX Runtime, fused just in time and without copying their weights."""

from __future__ import annotations

TYPE_CHECKING = False  # typing takes longer to import than all that a process runs which only waits for onnxruntime
if TYPE_CHECKING:
    from typing import Any

    from ort_qdq_plugin.activation import activate, deactivate
    from ort_qdq_plugin.errors import ModelError, QdqPluginError, SourceChangedError, SourceUnreadableError
    from ort_qdq_plugin.options import Options
    from ort_qdq_plugin.reason import Reason
    from ort_qdq_plugin.report import Fusion, Report, Unfused
    from ort_qdq_plugin.session import create_session, inspect, report_of, warm

__all__ = [
    "Fusion",
    "ModelError",
    "Options",
    "QdqPluginError",
    "Reason",
    "Report",
    "SourceChangedError",
    "SourceUnreadableError",
    "Unfused",
    "activate",
    "create_session",
    "deactivate",
    "inspect",
    "report_of",
    "warm",
]

__version__ = "0.1.0"

# Imported when they are first asked for: processes that only wait for onnxruntime (startup.py) should not pay for it.
_MODULES = {
    "activation": ("activate", "deactivate"),
    "errors": ("ModelError", "QdqPluginError", "SourceChangedError", "SourceUnreadableError"),
    "reason": ("Reason",),
    "options": ("Options",),
    "report": ("Fusion", "Report", "Unfused"),
    "session": ("create_session", "inspect", "report_of", "warm"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            import importlib

            value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
