"""What a model may cost beyond what stock ONNX Runtime takes for it."""

from __future__ import annotations

__all__ = ["MAX_BYTES", "MAX_SECONDS"]

MAX_SECONDS = 2
"""Of processor time."""
MAX_BYTES = 256 << 20
"""Of memory."""
