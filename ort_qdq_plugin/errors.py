"""Errors of a load. Without strict mode, the only one that leaves `create_session` is SourceUnreadableError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ort_qdq_plugin.log import printable

if TYPE_CHECKING:
    from ort_qdq_plugin.report import StockReason
    from ort_qdq_plugin.report.weights import Reason

__all__ = [
    "LeaveToStock",
    "ModelError",
    "NotComputedError",
    "NotFromCache",
    "NotFusable",
    "NothingToDo",
    "QdqPluginError",
    "SourceChangedError",
    "SourceUnreadableError",
    "error_text",
    "readable",
]


class QdqPluginError(Exception):
    """Base of this package's errors. Their texts are printable, whatever names are in them."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ModelError(QdqPluginError):
    """The model does not keep to its format: lengths, shapes, offsets or references do not fit together."""


class NotComputedError(ModelError):
    """A constant is computed from others in a way that has no definite result, or would take too much."""


class SourceChangedError(QdqPluginError):
    """A file of the model changed between being opened and being packed."""


class SourceUnreadableError(QdqPluginError, OSError):
    """The disk cannot read the model's weights. ONNX Runtime maps them into memory, and the process would get SIGBUS."""


class LeaveToStock(Exception):
    """The untouched model goes to stock ONNX Runtime, for a reason that is no failure. Never leaves the package."""

    def __init__(self, reason: StockReason, detail: str = "") -> None:
        super().__init__(reason.message(detail))
        self.reason, self.detail = reason, detail


class NothingToDo(LeaveToStock):
    """LeaveToStock for a reason in the model itself, which the cache remembers."""


class NotFromCache(Exception):
    """This session cannot use an entry of the cache: its options cannot be copied. Never leaves the package."""


class NotFusable(Exception):
    """A DequantizeLinear, or one reader of it, stays as it is. Never leaves matching."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextmanager
def readable() -> Iterator[None]:
    """While the block runs, errors of protobuf, and of code that reads its messages, become ModelErrors."""
    try:
        yield
    except (QdqPluginError, OSError):
        raise
    except Exception as error:
        raise ModelError(f"no readable model: {type(error).__name__}: {error}") from error


def error_text(error: Exception) -> str:
    """An error's text for the command line: without the number of a system's error."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
