"""One wrong use, how it is tried, and what a good message for it is."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ort_qdq_plugin import QdqPluginError
from ort_qdq_plugin.log import NAME

__all__ = ["Use", "raised", "said_by", "tried", "warned"]

_ROOT = Path(__file__).resolve().parents[2]
_START = _ROOT / "ort_qdq_plugin" / "switch" / "ort_qdq_plugin.pth"
_SECONDS = 60
# What the documentation says that the calls raise.
_DOCUMENTED = (TypeError, ValueError, QdqPluginError, OSError)


class Use(NamedTuple):
    """A wrong use."""

    what: str  # as a user would write it
    try_it: Callable[[Path], str]  # carries it out, in an empty folder that it is given; the message that it gets
    names: tuple[str, ...]  # words that the message must have: the argument, and what to do


def tried(use: Use, folder: Path) -> tuple[str, str]:
    """What a wrong use is told, and what is wrong with that; "" if nothing is."""
    try:
        message = use.try_it(folder)
    except Exception as error:
        return "", f"{type(error).__name__}: {error}"
    if not message.strip():
        return message, "it is told nothing"
    if "Traceback (most recent call last)" in message:
        return message, "it is told a traceback"
    missing = [name for name in use.names if name not in message]
    return message, f"it is not told of {', '.join(missing)}" if missing else ""


def raised(call: Callable[[], object]) -> str:
    """What a call raises: one of the errors that are documented."""
    try:
        call()
    except _DOCUMENTED as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("it is taken")


def warned(call: Callable[[], object]) -> str:
    """What a call that goes on all the same warns of, once."""
    told = _Told()
    logger = logging.getLogger(NAME)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(told)
    try:
        call()
    finally:
        logger.removeHandler(told)
        logger.propagate = propagates
    if len(told.lines) > 1:
        raise AssertionError(f"{len(told.lines)} warnings: {told.lines}")
    return "".join(told.lines)


def said_by(code: str, folder: Path, **variables: str) -> str:
    """What a process that runs this code writes to stderr, with these variables. It must end well.

    It has the package's start-up file, and modules in `folder` come before others.
    """
    given = {name: value for name, value in os.environ.items() if not name.startswith("ORT_QDQ_PLUGIN")}
    given |= {"PYTHONPATH": os.pathsep.join([str(folder), str(_ROOT)]), **variables}
    start = f"import sys; exec(open({str(_START)!r}).read())\n"
    command = [sys.executable, "-c", start + code]
    done = subprocess.run(command, env=given, cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise AssertionError(f"exit code {done.returncode}: {done.stderr}")
    return done.stderr.strip()


class _Told(logging.Handler):
    """Keeps the warnings that it gets."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
