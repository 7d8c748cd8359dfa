"""Descriptors of the C library, each for a handle of the system, and what owns them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from io import FileIO
from itertools import chain, islice
from typing import Any

from ort_qdq_plugin.system.opened import Identity, Opened, call, close_in_children, identified, leave_to_children

__all__ = ["Opened", "call", "close_in_children", "leave_to_children", "owners", "pipe"]


def owners(descriptors: Iterable[int]) -> Iterator[tuple[Any, Identity]]:
    """Objects that own what an iterator of the interpreter's own, such as `map`, opens (`identified`)."""
    # A file of the interpreter's own closes its descriptor without a line of Python code.
    return identified(map(FileIO, descriptors))


def pipe() -> tuple[Opened, Opened]:
    """The end to read from and the end to write to."""
    # The numbers come in a tuple, which nothing but these iterators sees.
    reader, writer = owners(islice(chain.from_iterable(iter(os.pipe, None)), 2))
    return Opened(reader), Opened(writer)
