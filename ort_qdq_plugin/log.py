"""Messages: names in them cannot steer a terminal, and only a warning imports logging, which takes milliseconds."""

from __future__ import annotations

import _thread
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ort_qdq_plugin.system.forks import fork_lock

__all__ = ["NAME", "info", "informs", "one_warning", "printable", "warning"]

NAME = "ort_qdq_plugin"
"""Of the logger."""


class _Here(_thread._local):
    """Of each thread: its warnings, while they are gathered."""

    gathered: list[tuple[str, tuple[Any, ...]]] | None = None


_here = _Here()


def printable(text: object) -> str:
    """A text for people, on one line. Names in models, and paths, are anybody's: what is not printable is escaped."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def informs() -> bool:
    """Whether what is logged at level info is wanted. A program that has not imported logging cannot want it."""
    if "logging" not in sys.modules:
        return False
    import logging

    return bool(_logger().isEnabledFor(logging.INFO))


def info(message: str, *values: Any) -> None:
    """Log at level info."""
    if informs():
        _logger().info(message, *map(_shown, values))


def warning(message: str, *values: Any) -> None:
    """Log a warning. It reaches stderr where a program has set up no logging."""
    shown = tuple(map(_shown, values))
    if _here.gathered is None:
        _warn(message, *shown)
    else:
        _here.gathered.append((message, shown))


@contextmanager
def one_warning() -> Iterator[None]:
    """While the block runs, what this thread warns of is gathered. All of it is one warning, at the end of the block."""
    outer, gathered = _here.gathered, list[tuple[str, tuple[Any, ...]]]()
    try:
        _here.gathered = gathered
        yield
    finally:
        _here.gathered = outer
        if len(gathered) == 1:
            message, values = gathered[0]
            _warn(message, *values)
        elif gathered:
            _warn("%s", "; ".join(message % values for message, values in gathered))


def _warn(message: str, *values: object) -> None:
    logger = _logger()
    # Python's last resort writes to stderr without the logger's name.
    logger.warning(message if logger.hasHandlers() else f"ort-qdq-plugin: {message}", *values)


def _shown(value: object) -> object:
    return value if isinstance(value, (int, float)) else printable(value)


def _logger() -> Any:
    with fork_lock:
        import logging
    return logging.getLogger(NAME)
