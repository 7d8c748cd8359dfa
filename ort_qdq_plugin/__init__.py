"""Load low-bit QDQ models in ONNX Runtime, fused just in time and without copying their weights."""

from __future__ import annotations

from ort_qdq_plugin.errors import ModelError, QdqPluginError, SourceChangedError
from ort_qdq_plugin.fusion.reason import Reason
from ort_qdq_plugin.options import Options
from ort_qdq_plugin.report import Fusion, Report, Unfused
from ort_qdq_plugin.session import create_session, inspect, report_of

__all__ = [
    "Fusion",
    "ModelError",
    "Options",
    "QdqPluginError",
    "Reason",
    "Report",
    "SourceChangedError",
    "Unfused",
    "create_session",
    "inspect",
    "report_of",
]

__version__ = "0.1.0"
