"""Errors of a load. Without strict mode, the only one that leaves `create_session` is SourceUnreadableError."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ort_qdq_plugin.log import printable

if TYPE_CHECKING:
    from ort_qdq_plugin.report import StockReason
    from ort_qdq_plugin.report.weights import Reason

__all__ = [
    "ExternalDataError",
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
    "writing_to",
]


class QdqPluginError(Exception):
    """Base of this package's errors. Their texts are printable, whatever names are in them."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ModelError(QdqPluginError):
    """The bytes are no ONNX model, or one that is not whole: lengths, shapes, offsets or references do not fit together, or
    external data is missing or too short. The text names the file and what is wrong with it."""


class ExternalDataError(ModelError):
    """External data of a model is not there, not all of it, or where the model must not look for it."""


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
        raise ModelError(f"not a readable ONNX model: {type(error).__name__}: {error}") from error


@contextmanager
def writing_to(path: str | os.PathLike[str]) -> Iterator[None]:
    """While the block runs, system errors that name no file, as of a full disk, name this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def error_text(error: Exception) -> str:
    """An error's text for the command line: without the number of a system's error."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
