"""SessionOptions that threads share: many may load with them at once, but one that changes an entry for a while is alone."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from ort_qdq_plugin.system.forks import in_forked_child

__all__ = ["changing", "reading"]


class _Use:
    """Which threads are busy with one SessionOptions: any number that read it, or one that changes it for a while."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers: list[int] = []
        self._changer: int | None = None
        self._changes = ExitStack()

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: self._changer is None)
            self._readers.append(threading.get_ident())
        try:
            yield
        finally:
            with self._condition:
                self._readers.remove(threading.get_ident())
                self._condition.notify_all()

    @contextmanager
    def changing(self) -> Iterator[ExitStack]:
        with self._condition:
            self._condition.wait_for(lambda: self._changer is None and not self._readers)
            self._changer = threading.get_ident()
        try:
            with self._changes:
                yield self._changes
        finally:
            with self._condition:
                self._changer = None
                self._condition.notify_all()

    def begin_anew_in_child(self) -> None:
        """Only the thread that forked exists in the child: undo what others were changing."""
        self._condition = threading.Condition()
        self._readers = [reader for reader in self._readers if reader == threading.get_ident()]
        if self._changer != threading.get_ident():
            self._changer = None
            self._changes.close()


_uses: weakref.WeakKeyDictionary[Any, _Use] = weakref.WeakKeyDictionary()
_uses_lock = threading.Lock()


def _use_of(session_options: Any) -> _Use:
    with _uses_lock:
        return _uses.setdefault(session_options, _Use())


@in_forked_child
def _begin_anew_in_child() -> None:
    global _uses_lock
    _uses_lock = threading.Lock()
    for use in list(_uses.values()):
        use.begin_anew_in_child()


@contextmanager
def reading(session_options: Any | None) -> Iterator[None]:
    """While the block runs, nobody is `changing` these options."""
    with nullcontext() if session_options is None else _use_of(session_options).reading():
        yield


@contextmanager
def changing(session_options: Any) -> Iterator[ExitStack]:
    """While the block runs, nobody else is `reading` or changing these options.

    Yields:
        A stack for what undoes the changes. It is called at the end of the block; and at once in the child, should another
        thread fork the process meanwhile.
    """
    with _use_of(session_options).changing() as changes:
        yield changes
