"""What can go wrong before a session exists. None of it reaches a user who did not ask for strict mode."""

from __future__ import annotations

__all__ = ["ModelError", "QdqPluginError", "SourceChangedError"]


class QdqPluginError(Exception):
    """Base of this package's errors."""


class ModelError(QdqPluginError):
    """The model does not keep to its format: lengths, shapes, offsets or references do not fit together."""


class SourceChangedError(QdqPluginError):
    """A file of the model changed between being opened and being packed."""
