"""By which way ONNX Runtime gets a prepared model."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.ort.copies import copy_loses_something, foreign_domains, supplies_initializers
from ort_qdq_plugin.ort.release import lends_files
from ort_qdq_plugin.report import Route, RouteReason, StockReason

__all__ = ["Way", "check_options", "way_of"]


class Way(Enum):
    """How ONNX Runtime gets the bytes of a model, and with which options."""

    BORROWED = "in memory, which it uses in place; with a private copy of the caller's options"
    BY_PATH = "as files that it opens; with a private copy of the caller's options"
    WITH_OWN_OPTIONS = "as files that it opens; with the caller's own options"
    COPIED = "in memory, of which it makes a copy; with a private copy of the caller's options"

    @property
    def by_path(self) -> bool:
        """Whether ONNX Runtime opens the packed files itself."""
        return self in (Way.BY_PATH, Way.WITH_OWN_OPTIONS)

    @property
    def route(self) -> Route:
        """What the report says of it."""
        return "by path" if self.by_path else "copied" if self is Way.COPIED else "borrowed"

    @property
    def reason(self) -> RouteReason | None:
        """Why nothing is borrowed, if it is not."""
        if self is Way.BORROWED:
            return None
        return RouteReason.OPTIONS if self is Way.WITH_OWN_OPTIONS else RouteReason.COPIES


def way_of(request: LoadRequest, domains: Iterable[str]) -> Way:
    """The way for a model with operators of these domains."""
    if copy_loses_something(request.session_options, foreign_domains(domains)):
        return Way.WITH_OWN_OPTIONS
    if lends_files() or not request.creates_session:
        return Way.BORROWED
    # What ONNX Runtime opens itself, an optimized model refers to where it is: in temporary files.
    return Way.COPIED if request.saves_model or request.options.buffer == "memory" else Way.BY_PATH


def check_options(request: LoadRequest, way: Way) -> None:
    """Raise LeaveToStock if the session's options do not allow a model to go this way."""
    if supplies_initializers(request.session_options):
        raise LeaveToStock(StockReason.ADDED_INITIALIZERS)
    if way is Way.WITH_OWN_OPTIONS and request.saves_model:
        raise LeaveToStock(StockReason.OPTIMIZED_MODEL)
