"""Logging that imports the logging module, which takes milliseconds, only for a warning."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["NAME", "info", "warning"]

NAME = "ort_qdq_plugin"
"""Of the logger."""


def info(message: str, *values: Any) -> None:
    """Log at level info. A program that has not imported logging cannot want it."""
    if "logging" in sys.modules:
        _logger().info(message, *values)


def warning(message: str, *values: Any) -> None:
    """Log a warning. It reaches stderr where a program has set up no logging."""
    _logger().warning(message, *values)


def _logger() -> Any:
    import logging

    return logging.getLogger(NAME)
