"""Descriptors, and what owns them."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

from ort_qdq_plugin.system.opened import Identity, Opened, call, close_in_children, identified, leave_to_children

__all__ = ["Opened", "call", "close_in_children", "leave_to_children", "owners", "pipe"]

# The one type of the standard library whose objects own a descriptor of any kind, and close it with their last reference
# without a line of Python code. None of them is used as what the type is for.
_Owner: Any = getattr(select, "epoll", getattr(select, "kqueue", None))


def owners(descriptors: Iterable[int]) -> Iterator[tuple[Any, Identity]]:
    """Objects that own what an iterator of the interpreter's own, such as `map`, opens (`identified`)."""
    return identified(map(_Owner.fromfd, descriptors))


def pipe() -> tuple[Opened, Opened]:
    """The end to read from and the end to write to."""
    # The numbers come in a tuple, which nothing but these iterators sees.
    reader, writer = owners(islice(chain.from_iterable(iter(os.pipe, None)), 2))
    return Opened(reader), Opened(writer)
