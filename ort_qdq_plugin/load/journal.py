"""What has been done with a model so far, while it is loaded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.report import Report, Route, RouteReason
from ort_qdq_plugin.report.values import replace

__all__ = ["Journal"]


class Journal:
    """What has been done with a model so far, for its report."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self._seconds = dict(seconds or {})
        self._report = Report("stock")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def planned(self, report: Report) -> None:
        """Record what was decided, in a report whose route and seconds do not matter."""
        self._report = report

    def finished(self, route: Route, stock: LeaveToStock | None = None, reason: RouteReason | None = None) -> Report:
        """The report: how the model was loaded and why so, or why it was left to stock ONNX Runtime."""
        report = replace(self._report, route=route, route_reason=reason, seconds=dict(self._seconds))
        return report if stock is None else replace(report, stock_reason=stock.reason, stock_detail=stock.detail)
