"""Load low-bit QDQ models in ONNX Runtime, fused just in time and without copying their weights.

>>> from ort_qdq_plugin import Options, create_session, report_of
>>> session = create_session("model.onnx", options=Options(cache_dir="cache"))
>>> print(report_of(session))

`create_session` loads a model, `report_of` says what was done, `inspect` what would be; `Options` has all settings.
`activate` does the same for all sessions of a process, `warm` fills a cache, `export` writes the fused model, and `genai`
is for models of onnxruntime-genai.
"""

from __future__ import annotations

# Not that of typing, which takes longer to import than all that a process runs which only waits for onnxruntime. Its type is
# stated so that editors do not take the value for known: they would not follow the imports below.
TYPE_CHECKING: bool = False
if TYPE_CHECKING:
    from typing import Any

    from ort_qdq_plugin import genai
    from ort_qdq_plugin.errors import ModelError, QdqPluginError, SourceChangedError, SourceUnreadableError
    from ort_qdq_plugin.load.export import export
    from ort_qdq_plugin.options import Options
    from ort_qdq_plugin.report import Report, StockReason
    from ort_qdq_plugin.report.weights import FusedWeight, Reason, UnfusedWeight
    from ort_qdq_plugin.session import create_session, inspect, report_of, warm
    from ort_qdq_plugin.switch.activation import activate, deactivate

__all__ = [
    "FusedWeight",
    "ModelError",
    "Options",
    "QdqPluginError",
    "Reason",
    "Report",
    "SourceChangedError",
    "SourceUnreadableError",
    "StockReason",
    "UnfusedWeight",
    "activate",
    "create_session",
    "deactivate",
    "export",
    "genai",
    "inspect",
    "report_of",
    "warm",
]

__version__ = "0.1.0"

# Imported when they are first asked for: processes that only wait for onnxruntime (switch/startup.py) should not pay for it.
_MODULES = {
    "errors": ("ModelError", "QdqPluginError", "SourceChangedError", "SourceUnreadableError"),
    "load.export": ("export",),
    "options": ("Options",),
    "report": ("Report", "StockReason"),
    "report.weights": ("FusedWeight", "Reason", "UnfusedWeight"),
    "session": ("create_session", "inspect", "report_of", "warm"),
    "switch.activation": ("activate", "deactivate"),
}

# Those that import onnxruntime.
_WITH_RUNTIME = ("genai", "load.export", "session")


def __getattr__(name: str) -> Any:
    if name == "genai":
        return _imported("genai")
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(_imported(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _imported(module: str) -> Any:
    """A module of this package. An ImportError says what to type where something that it needs is not installed."""
    import importlib

    try:
        if module in _WITH_RUNTIME:
            # Without the lock: while it is imported, `activate` may want that (switch/startup.py).
            importlib.import_module("onnxruntime")
        from ort_qdq_plugin.system.forks import fork_lock

        with fork_lock:
            return importlib.import_module(f"{__name__}.{module}")
    except (ImportError, AttributeError) as error:
        from ort_qdq_plugin.ort.installed import explained

        problem = explained(error)
        if problem is None:
            raise
        raise ImportError(problem, name=getattr(error, "name", None)) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
