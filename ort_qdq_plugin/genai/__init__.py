"""Language models in onnxruntime-genai, on fused weights: `prepare`, `load`, `report_of`."""

from __future__ import annotations

from ort_qdq_plugin.genai.models import load, prepare, report_of

__all__ = ["load", "prepare", "report_of"]
