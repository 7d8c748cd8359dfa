"""Language models of onnxruntime-genai with fused weights: `prepare`, `load`, `report_of`, `warm`, `export`."""

from __future__ import annotations

from ort_qdq_plugin.genai.export_folder import export
from ort_qdq_plugin.genai.models import load, prepare, report_of, warm

__all__ = ["export", "load", "prepare", "report_of", "warm"]
