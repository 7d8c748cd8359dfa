"""What has been done with a model so far, while it is loaded, and who is told of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.report import Report, Route, RouteReason
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.values import replace

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ort_qdq_plugin.options import Progress

__all__ = ["Journal", "shown", "tell_stage"]


def shown(progress: Progress | str | None, model: str | bytes | os.PathLike[str]) -> AbstractContextManager[Progress | None]:
    """For as long as a model is loaded: whom to tell how far that is, by what the options say of it."""
    if not isinstance(progress, str):
        return nullcontext(progress)
    try:
        with fork_lock:
            from ort_qdq_plugin.load.bar import bar
    except Exception:  # no descriptor is left to read it with: the load goes on
        return nullcontext()
    return bar("model" if isinstance(model, bytes) else os.path.basename(os.path.abspath(model)))


def tell_stage(progress: Progress | None, name: str) -> None:
    """Tell whoever is told of the progress that a stage begins, if it wants to know."""
    stage = getattr(progress, "stage", None)
    if stage is not None:
        stage(name)


class Journal:
    """What has been done with a model so far, for its report. `progress` is told of it."""

    def __init__(self, progress: Progress | None = None, seconds: Mapping[str, float] | None = None) -> None:
        self.progress = progress
        self._seconds = dict(seconds or {})
        self._report = Report("stock")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a stage."""
        tell_stage(self.progress, name)
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
