"""SessionOptions that threads share: many may load with them at once, but one that changes an entry for a while is alone."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

__all__ = ["changing", "reading"]


class _Use:
    """Who is busy with one SessionOptions: any number of readers, or one who changes it for a while."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._changing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._changing)
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                self._condition.notify_all()

    @contextmanager
    def changing(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._changing and not self._readers)
            self._changing = True
        try:
            yield
        finally:
            with self._condition:
                self._changing = False
                self._condition.notify_all()


_uses: weakref.WeakKeyDictionary[Any, _Use] = weakref.WeakKeyDictionary()
_uses_lock = threading.Lock()


def _use_of(session_options: Any) -> _Use:
    with _uses_lock:
        return _uses.setdefault(session_options, _Use())


@contextmanager
def reading(session_options: Any | None) -> Iterator[None]:
    """While the block runs, nobody is `changing` these options."""
    with nullcontext() if session_options is None else _use_of(session_options).reading():
        yield


@contextmanager
def changing(session_options: Any) -> Iterator[None]:
    """While the block runs, nobody else is `reading` or changing these options."""
    with _use_of(session_options).changing():
        yield
