"""What commands print: text, tables, progress and numbers with their units.

Tables have colours where rich is installed and a terminal shows them; what is redirected is plain text.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import IO, Any

from ort_qdq_plugin.errors import writing_to
from ort_qdq_plugin.load.bar import bar, size
from ort_qdq_plugin.log import printable
from ort_qdq_plugin.options import Progress
from ort_qdq_plugin.values import NamedTuple

__all__ = [
    "Column",
    "UsageError",
    "at_least",
    "complain",
    "count",
    "missing",
    "progress",
    "say",
    "say_json",
    "say_note",
    "say_table",
    "size",
    "yes_to",
]

_GAP = "  "
_INDENT = "    "
_COLUMNS = 80  # where no terminal shows it


class UsageError(Exception):
    """The command cannot be carried out as it was given: bad arguments, or something that is missing."""


def at_least(least: int) -> Callable[[str], int]:
    """What reads an argument that is a whole number, for `argparse`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r}, must be a whole number of at least {least}")
        return number

    return read


class Column(NamedTuple):
    """A column of a table. Numbers stand on the right."""

    title: str
    right: bool = False


def say(*lines: str) -> None:
    """Print lines, or an empty one.

    Raises:
        OSError: They cannot be written, as on a full disk.
    """
    with writing_to("standard output"):
        sys.stdout.write("".join(f"{printable(line)}\n" for line in lines or ("",)))
        sys.stdout.flush()


def say_note(text: str, *, head: str = _INDENT) -> None:
    """Print what belongs to a table, in lines that fit the terminal: `head`, and the text indented behind it."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _COLUMNS
    wrapper = textwrap.TextWrapper(width, head, _INDENT, break_long_words=False, break_on_hyphens=False)
    say(*wrapper.wrap(printable(text)))


def complain(*lines: str) -> None:
    """Print lines on stderr, if that is possible."""
    with suppress(OSError):
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))


def say_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print a value as JSON."""
    say(json.dumps(value))


def say_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], marked: Collection[int] = ()) -> None:
    """Print a table. Rows whose numbers are `marked` deserve attention."""
    if not _is_rich(sys.stdout):
        shown = [[column.title for column in columns], *([*map(printable, row)] for row in rows)]
        widths = [max(map(len, texts)) for texts in zip(*shown, strict=True)]
        for row in shown:
            cells = [
                text.rjust(width) if column.right else text.ljust(width)
                for text, width, column in zip(row, widths, columns, strict=True)
            ]
            say(_GAP.join(cells).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, len(_GAP), 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for index, texts in enumerate(rows):
        table.add_row(*map(Text, map(printable, texts)), style="yellow" if index in marked else None)
    Console().print(table)


@contextmanager
def progress(title: str, *, of_bytes: bool = True) -> Iterator[Progress]:
    """Show on a terminal how far something is, unless it takes less than half a second.

    Yields:
        A function of (done, to do), in bytes if it is `of_bytes`, for any thread to call.
    """
    with bar(title, of_bytes=of_bytes) as shown:
        yield shown or (lambda _done, _total: None)


def yes_to(question: str) -> bool:
    """Ask on the terminal.

    Raises:
        UsageError: There is none.
    """
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on: say --yes")
    sys.stderr.write(f"{printable(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def missing(module: str, extra: str) -> UsageError | None:
    """What to say where a module is not installed, and which extra has it; None where it is."""
    if find_spec(module) is not None:
        return None
    return UsageError(f"{module} is not installed: pip install 'ort-qdq-plugin[{extra}]'")


def count(number: int, noun: str) -> str:
    """A number of things whose plural ends with s or ies."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _is_rich(stream: IO[str]) -> bool:
    return stream.isatty() and find_spec("rich") is not None
