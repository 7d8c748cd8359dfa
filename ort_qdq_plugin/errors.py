"""What can go wrong before a session exists. Nearly none of it reaches a user who did not ask for strict mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ort_qdq_plugin.report import Reason

__all__ = [
    "LeaveToStock",
    "ModelError",
    "NotFusable",
    "NothingToDo",
    "QdqPluginError",
    "SourceChangedError",
    "SourceUnreadableError",
    "error_text",
    "readable",
]


class QdqPluginError(Exception):
    """Base of this package's errors."""


class ModelError(QdqPluginError):
    """The model does not keep to its format: lengths, shapes, offsets or references do not fit together."""


class SourceChangedError(QdqPluginError):
    """A file of the model changed between being opened and being packed."""


class SourceUnreadableError(QdqPluginError, OSError):
    """The disk cannot give the model's weights. ONNX Runtime, which maps them into memory, would be killed by SIGBUS."""


class LeaveToStock(Exception):
    """The untouched model goes to stock ONNX Runtime, because of what the message says. Never leaves the package.

    There is nothing wrong then: this is raised where there is nothing to do, or where ONNX Runtime knows better.
    """


class NothingToDo(LeaveToStock):
    """LeaveToStock because of what the model itself is: that will be so next time as well."""


class NotFusable(Exception):
    """A DequantizeLinear, or one reader of it, stays as it is. Never leaves matching."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextmanager
def readable() -> Iterator[None]:
    """Turn what protobuf, and what is built on it, raises for malformed messages into a ModelError."""
    try:
        yield
    except (QdqPluginError, OSError):
        raise
    except Exception as error:
        raise ModelError(f"no readable model: {type(error).__name__}: {error}") from error


def error_text(error: Exception) -> str:
    """An error in the words of command lines: without the number of a system's error."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
