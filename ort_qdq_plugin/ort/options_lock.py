"""SessionOptions that threads share: many may load with them at once, but one that changes an entry for a while is alone.

A hold ends with the object that has it. So an interrupt between any two instructions cannot leave the options locked: once
the block is left, the object is gone. Changes are made on a thread of their own, which no signal handler interrupts.
"""

from __future__ import annotations

import _thread
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from ort_qdq_plugin.ort.keys import config_entry, entry_to_put_back
from ort_qdq_plugin.system.forks import in_forked_child
from ort_qdq_plugin.system.threads import Work

__all__ = ["reading", "with_entries"]

_T = TypeVar("_T")

_POLL_SECONDS = 0.005


class _Hold:
    """A thread reads the options, or changes them for a while: then `before` has the entries to put back.

    Args:
        reader: What reads. None: the hold changes the options, on whichever thread enters it.
    """

    def __init__(self, reader: reading | None) -> None:
        self.before: dict[str, str] = {}
        self.thread = self._for_thread = _thread.get_ident()
        self.reads = reader is not None
        self._reader = None if reader is None else weakref.ref(reader)

    def excludes(self, other: _Hold) -> bool:
        """Whether `other`, which wants to enter, has to wait for this one."""
        if not self.reads:
            return other.thread != self.thread
        # A signal handler that loads a model must not wait for the load that it interrupts.
        return not other.reads and other._for_thread != self.thread and not self.is_over()

    def is_over(self) -> bool:
        """Whether what reads is gone."""
        return self._reader is not None and self._reader() is None


# In the order in which they came. Adding and removing one is a single step of the interpreter: there is no lock that an
# interrupt could leave locked.
_holds: weakref.WeakKeyDictionary[Any, list[_Hold]] = weakref.WeakKeyDictionary()


def _enter(session_options: Any, hold: _Hold) -> None:
    hold.thread = _thread.get_ident()
    holds = _holds.setdefault(session_options, [])
    holds.append(hold)
    while True:
        present = holds.copy()
        earlier = present[: present.index(hold)]
        # Who reads already goes on reading, also past those that wait for it.
        reads = any(other.thread == hold.thread and other.reads for other in earlier)
        if (reads and hold.reads) or not any(other.excludes(hold) for other in earlier):
            return
        time.sleep(_POLL_SECONDS)


def _leave(session_options: Any, hold: _Hold) -> None:
    holds = _holds.get(session_options, [])
    for other in holds.copy():
        # Those that an interrupt has left behind go too.
        if other is hold or other.is_over():
            with suppress(ValueError):  # another thread has removed it
                holds.remove(other)


class reading:  # noqa: N801  # used as a function, like those of contextlib
    """While the block runs, nobody else changes these options.

    Args:
        session_options: The options. None: there are none, and nothing to wait for.
    """

    def __init__(self, session_options: Any | None) -> None:
        self._session_options = session_options
        self._hold: _Hold | None = None

    def __enter__(self) -> None:
        if self._session_options is not None:
            self._hold = _Hold(self)
            _enter(self._session_options, self._hold)

    def __exit__(self, *_: object) -> None:
        if self._hold is not None:
            _leave(self._session_options, self._hold)


def with_entries(session_options: Any, entries: Mapping[str, str], action: Callable[[], _T]) -> _T:
    """Call `action` while the options have other config entries, and nobody else reads or changes them.

    It is called on a thread of its own, where no interrupt can come between a change and its undoing. An interrupt of the
    calling thread is raised when the action has ended. Should the process be forked meanwhile, the changes are undone in the
    child.

    Args:
        session_options: The options.
        entries: Config entries by key. An entry cannot be removed again: see `entry_to_put_back`.
        action: What is done.

    Returns:
        What `action` returns.

    Raises:
        BaseException: What `action` raises, and what a signal handler raises meanwhile.
    """
    hold = _Hold(None)

    def changed() -> _T:
        try:
            _enter(session_options, hold)
            for key, value in entries.items():
                # ONNX Runtime warns of each entry that is set anew, also if it stays the same.
                if config_entry(session_options, key) != value:
                    hold.before[key] = entry_to_put_back(session_options, key)
                    session_options.add_session_config_entry(key, value)
            return action()
        finally:
            _undo(session_options, hold)
            _leave(session_options, hold)

    work = Work(changed)
    try:
        work.start()
    except RuntimeError:  # no thread can be had
        work.run()
    except BaseException as interrupt:
        if work.take_back():
            raise
        work.error = interrupt
    work.wait()
    error = work.take_error()
    try:
        if error is not None:
            raise error
        return work.result
    finally:
        # The exception refers to this frame.
        del error


def _undo(session_options: Any, hold: _Hold) -> None:
    for key, value in hold.before.items():
        session_options.add_session_config_entry(key, value)


@in_forked_child
def _begin_anew_in_child() -> None:
    """Only the thread that forked exists in the child: undo what others were changing."""
    for session_options, holds in list(_holds.items()):
        for hold in holds:
            _undo(session_options, hold)
        holds[:] = [hold for hold in holds if hold.reads and hold.thread == _thread.get_ident()]
