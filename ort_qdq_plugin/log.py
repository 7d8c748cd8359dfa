"""Messages: names in them cannot steer a terminal, and only a warning imports logging, which takes milliseconds."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["NAME", "info", "printable", "warning"]

NAME = "ort_qdq_plugin"
"""Of the logger."""


def printable(text: object) -> str:
    """A text for people, on one line. Names in models, and paths, are anybody's: what is not printable is escaped."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def info(message: str, *values: Any) -> None:
    """Log at level info. A program that has not imported logging cannot want it."""
    if "logging" in sys.modules:
        _logger().info(message, *map(_shown, values))


def warning(message: str, *values: Any) -> None:
    """Log a warning. It reaches stderr where a program has set up no logging."""
    _logger().warning(message, *map(_shown, values))


def _shown(value: object) -> object:
    return value if isinstance(value, (int, float)) else printable(value)


def _logger() -> Any:
    import logging

    return logging.getLogger(NAME)
