"""Running the command line: in this process, in one of its own, and on a terminal."""

import os
import signal
import struct
import subprocess
import sys
from contextlib import suppress
from typing import NamedTuple

import pytest

from ort_qdq_plugin.cli.main import main
from tests.lacking import fcntl, pty, termios
from tests.support import environment

__all__ = ["Here", "Outcome", "apart", "on_terminal", "shown_by"]

_TIMEOUT = 120
_OF_TERMINALS = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")


class Outcome(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


class Here:
    """The command in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: object) -> Outcome:
        """Whatever comes of it."""
        self._capture.readouterr()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = main([*map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return Outcome(code, *self._capture.readouterr())

    def said(self, *arguments: object, code: int = 0) -> str:
        """What it prints where it can do what it is asked for, with no word on stderr."""
        done = self(*arguments)
        assert (done.code, done.err) == (code, "")
        return done.out

    def refused(self, *arguments: object) -> str:
        """The one line that it says where it does nothing."""
        done = self(*arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        return done.err


def apart(*arguments: object, text: str | None = None, **variables: str) -> Outcome:
    """The command in a process of its own; `text` is what it reads."""
    done = subprocess.run(
        _command(arguments), env=_environment(variables), capture_output=True, text=True, timeout=_TIMEOUT, input=text or ""
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def on_terminal(*arguments: object, columns: int = 80, typed: str = "", **variables: str) -> Outcome:
    """The command on a terminal, which shows stdout and stderr alike; `typed` is what somebody types there."""
    return shown_by(_command(arguments), columns=columns, typed=typed, **variables)


def shown_by(command: list[str], *, columns: int = 80, typed: str = "", **variables: str) -> Outcome:
    """Any program on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        command, env=_environment({"TERM": "xterm-256color", **variables}),
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, typed.encode())
    shown = b""
    # Reading fails once nobody has the other end any more.
    with suppress(OSError):
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    os.close(ours)
    return Outcome(process.wait(_TIMEOUT), shown.decode(), "")


def _command(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "ort_qdq_plugin", *map(str, arguments)]


def _environment(variables: dict[str, str]) -> dict[str, str]:
    # What a terminal is like is for each test to say.
    kept = {name: value for name, value in environment().items() if name not in _OF_TERMINALS}
    return {**kept, **variables}
