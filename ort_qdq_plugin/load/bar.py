"""A line on the terminal that says how far a load is: which stage it is in, for how long, and how much of it is done.

It is on standard error, and only where that is a terminal. A thread of its own draws it, since most of a load is ONNX
Runtime's own work, which tells nothing. The line is plain text behind a carriage return, so that any terminal shows it, and
is gone when the load ends, whatever ends it.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from _thread import allocate_lock
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from ort_qdq_plugin.log import printable
from ort_qdq_plugin.options import Progress
from ort_qdq_plugin.system.forks import in_forked_child
from ort_qdq_plugin.system.threads import Work

__all__ = ["bar", "size"]

# What is done sooner needs no line.
_PATIENCE_SECONDS = 0.5
_PERIOD_SECONDS = 0.1
_COLUMNS = 80  # of a terminal that does not tell
_WIDTH = 10  # of the bar itself
_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
# The stages of `Report.seconds`, and those of what is exported or put into the cache behind them.
_STAGES = {
    "cache": "looking into the cache",
    "open": "opening",
    "match": "matching",
    "plan": "planning",
    "pack": "packing",
    "assemble": "assembling",
    "share": "pre-packing",
    "write": "writing",
    "copy": "copying",
    "disk": "waiting for the disk",
    "create session": "creating the session",
}


class _Bar:
    """What tells a line of one load, from any thread. The line ends with it, should an interrupt keep it from closing."""

    def __init__(self, title: str, terminal: int, of_bytes: bool) -> None:
        self._line, self._owner = _Line(title, terminal, of_bytes), os.getpid()
        self._drawing = Work(partial(self._line.draw_while, weakref.ref(self)))
        with suppress(RuntimeError):  # there can be no thread
            self._drawing.start()

    def __call__(self, done: int, total: int) -> None:
        self._line.amount = done, total

    def stage(self, name: str) -> None:
        """Another stage begins, of which nothing is done yet."""
        self._line.amount = 0, 0
        self._line.stage = _STAGES.get(name, name)

    def close(self) -> None:
        """Have the line erased, and wait for that. An interrupt that comes meanwhile is raised afterwards."""
        self._line.close()
        # In a forked child nobody draws it.
        if self._owner == os.getpid() and not self._drawing.take_back():
            self._drawing.wait()
            error = self._drawing.take_error()
            if error is not None:
                raise error


class _Line:
    """What is to be said of one load. Only one thread, which is its own, draws it."""

    def __init__(self, title: str, terminal: int, of_bytes: bool) -> None:
        self._title, self._terminal, self._of_bytes = printable(title), terminal, of_bytes
        self.stage, self.amount = "", (0, 0)
        self._began = time.monotonic()
        self._drawn = 0  # columns that it takes now
        self._closed = False
        self._wake = allocate_lock()
        self._wake.acquire()

    def close(self) -> None:
        """Have `draw_while` end."""
        self._closed = True
        with suppress(RuntimeError):  # it was called before
            self._wake.release()

    def draw_while(self, teller: weakref.ref[_Bar]) -> None:
        """Draw until it is closed, or nobody is there any more to tell anything; then erase it."""
        _lines.append(self)
        try:
            while not self._closed and teller() is not None:
                self._wake.acquire(timeout=_PERIOD_SECONDS)
                # Of several loads at once the first one has the line.
                if not self._closed and _lines[:1] == [self] and time.monotonic() - self._began >= _PATIENCE_SECONDS:
                    self._draw(self._text())
            if self._drawn:
                self._draw("")
                _write(self._terminal, "\r")
        finally:
            with suppress(ValueError):  # a fork may have cleared them
                _lines.remove(self)

    def _draw(self, text: str) -> None:
        _write(self._terminal, f"\r{text.ljust(self._drawn)}")
        self._drawn = len(text)

    def _text(self) -> str:
        """The line, one column shorter than the terminal: some begin a new line behind the last column."""
        columns = _COLUMNS
        with suppress(OSError):
            columns = os.get_terminal_size(self._terminal).columns or _COLUMNS
        (done, total), said = self.amount, [self.stage] * bool(self.stage)
        if total:
            part = min(done / total, 1.0)
            filled = round(part * _WIDTH)
            of = f"{part:4.0%} of {size(total)}" if self._of_bytes else f"{done} of {total}"
            said.append(f"[{'#' * filled}{'-' * (_WIDTH - filled)}] {of}")
        seconds = f"{time.monotonic() - self._began:.0f} s"
        rest = f": {', '.join([' '.join(said), seconds])}" if said else f": {seconds}"
        # Letters beyond these may take two columns, or none.
        title = self._title.encode("ascii", "backslashreplace").decode()
        return f"{title[: max(0, columns - 1 - len(rest))]}{rest}"[: columns - 1]


# Those that are drawn or wait for it. In a forked child there is no thread that draws.
_lines: list[_Line] = []
in_forked_child(_lines.clear)


@contextmanager
def bar(title: str, *, of_bytes: bool = True) -> Iterator[Progress | None]:
    """While the block runs, say on the terminal how far something is, unless it takes less than half a second.

    Yields:
        A function of (done, to do), in bytes if it is `of_bytes`, for any thread to call; None if standard error is no
        terminal.
    """
    terminal = _terminal()
    shown = None if terminal is None else _Bar(title, terminal, of_bytes)
    try:
        yield shown
    finally:
        if shown is not None:
            shown.close()


def size(nbytes: float) -> str:
    """A number of bytes for people."""
    return next((f"{nbytes / factor:.1f} {unit}" for unit, factor in _UNITS if nbytes >= factor), f"{nbytes:.0f} B")


def _terminal() -> int | None:
    """The descriptor of standard error, if it is a terminal."""
    # There may be none, or an object in its place that has no descriptor.
    with suppress(AttributeError, OSError, ValueError):
        descriptor = sys.stderr.fileno()
        return descriptor if os.isatty(descriptor) else None
    return None


def _write(descriptor: int, text: str) -> None:
    # Not through sys.stderr: a fork must not find its lock held by a thread that the child does not have.
    with suppress(OSError):
        os.write(descriptor, text.encode())
