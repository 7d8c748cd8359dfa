"""What matching says of a weight that it leaves alone."""

from __future__ import annotations

from ort_qdq_plugin.report import Reason

__all__ = ["NotFusable"]


class NotFusable(Exception):
    """A DequantizeLinear, or one reader of it, stays as it is. Raised and caught inside matching; it never leaves it."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason
