"""Runs of sessions, and forks: what makes a session of the parent's usable in a forked child.

Only the thread that forked exists in the child. What another one was doing inside of ONNX Runtime stays half done there, and
its locks stay locked. So a fork waits until no thread runs or creates a session, holds new ones back until it is over, and
waits until the threads of pools sleep: after a run, each looks for more work for some 0.1 seconds.

In the child, the thread that runs a session does what the pool would have done: it takes part in every loop, and takes back
what no other thread has begun. What is given away as a whole would wait for ever: `run_async`, and parallel execution. To
destroy a pool is to wait for its threads, which crashes where they do not exist: the child never destroys what it inherits.
"""

from __future__ import annotations

import _thread
import ctypes
import functools
import time
import weakref
from _thread import get_ident
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeAlias

import onnxruntime

from ort_qdq_plugin import log
from ort_qdq_plugin.ort.hook import native_session
from ort_qdq_plugin.system.forks import around_forks, asleep, in_forked_child, native_threads

__all__ = ["RUN_METHODS", "counted", "creating"]

RUN_METHODS = ("run", "run_async", "run_with_iobinding", "run_with_ort_values", "run_with_ortvaluevector")
"""Of onnxruntime.InferenceSession: those that run the native session."""

_RUN_SECONDS = 2.0  # so long a fork waits for what others are inside of; then it goes on
_POOL_SECONDS = 0.5  # and so long for pools
_HOLD_SECONDS = 5.0  # so long others wait for a fork, should that wait for something of theirs
_POLL_SECONDS = 0.0005

# What each thread is inside of, and each `run_async` that has not called back. There is no lock: each changes its own item,
# in a single step of the interpreter, before it looks at `_forking`; and a fork looks here after it has changed that.
_inside: dict[object, _Inside] = {}
_forking: list[int] = []  # threads
_overdue: set[int] = set()  # id of the native sessions inside of which others were when the fork went on
_warned = False

# Each native session, and the threads of its pools: those that came while it was made.
_sessions: dict[weakref.ref[Any], frozenset[int]] = {}
# In a forked child: each native session of the parent's, and why it cannot run; "" if it can.
_inherited: dict[Any, str] = {}

_Inside: TypeAlias = "tuple[Any, _Inside | None]"  # a session that runs or is created, and inside of what this began

_WAS_RUNNING = "this session was running when the process was forked, and cannot be used in the child: create one there"
_IN_PARALLEL = "this session executes in parallel, on threads that a forked child does not have: create one there"
_ASYNC = "run_async needs the session's threads, which a forked child does not have: use run, or create a session there"


@contextmanager
def creating(session: Any) -> Iterator[None]:
    """The block creates the native session of an InferenceSession. Forks wait for its end as for that of a run."""
    thread = get_ident()
    outer = _inside.get(thread)
    before = native_threads()
    try:
        _inside[thread] = session, outer
        if _forking:
            _wait_for_fork(thread, session, outer)
        yield
        _sessions[weakref.ref(native_session(session), _sessions.pop)] = native_threads() - before
    finally:
        if outer is None:
            _inside.pop(thread, None)
        else:
            _inside[thread] = outer


def counted(owner: Any, name: str) -> Callable[..., Any]:
    """The attribute of that name, one of the RUN_METHODS, as a method that forks wait for.

    In a forked child it raises RuntimeError where it would wait for threads that only the parent has.

    Args:
        owner: What has the attribute. It is looked up for each run.
    """
    if name == "run_async":
        owner = SimpleNamespace(run_async=_calling_back(owner))

    @functools.wraps(getattr(owner, name))
    def run(self: Any, *arguments: Any, **keywords: Any) -> Any:
        thread = get_ident()
        outer = _inside.get(thread)
        try:
            _inside[thread] = self, outer
            if _forking:
                _wait_for_fork(thread, self, outer)
            if _inherited and (reason := _inherited.get(native_session(self))):
                raise RuntimeError(reason)
            return getattr(owner, name)(self, *arguments, **keywords)
        finally:
            # Not in a function: an interrupt can come where one begins.
            if outer is None:
                _inside.pop(thread, None)
            else:
                _inside[thread] = outer

    return run


def _wait_for_fork(thread: int, session: Any, outer: _Inside | None) -> None:
    end = time.monotonic() + _HOLD_SECONDS
    # A signal handler may run a session while its own thread waits in order to fork.
    while _forking and thread not in _forking and outer is None and time.monotonic() < end:
        _inside.pop(thread, None)
        time.sleep(_POLL_SECONDS)
        _inside[thread] = session, None


def _calling_back(owner: Any) -> Callable[..., Any]:
    """`run_async`, as a run that lasts until it has called back."""

    @functools.wraps(owner.run_async)
    def run_async(self: Any, output_names: Any, input_feed: Any, callback: Any, *arguments: Any, **keywords: Any) -> Any:
        if native_session(self) in _inherited:
            raise RuntimeError(_ASYNC)
        pending = object()

        def call_back(*results: Any) -> None:
            # From here on it is this thread that is inside, so that the callback may fork, and run sessions.
            thread = get_ident()
            try:
                _inside[thread] = self, None
                _inside.pop(pending, None)
                callback(*results)
            finally:
                _inside.pop(thread, None)

        followed = call_back if callable(callback) else callback
        try:
            _inside[pending] = self, None
            return owner.run_async(self, output_names, input_feed, followed, *arguments, **keywords)
        except BaseException:
            _inside.pop(pending, None)
            raise

    return run_async


def _sessions_of(inside: _Inside | None) -> Iterator[Any]:
    while inside is not None:
        session, inside = inside
        yield session


def _await_others() -> None:
    """Before a fork."""
    global _warned
    thread, end = get_ident(), time.monotonic() + _RUN_SECONDS
    _forking.append(thread)
    while (others := [inside for who, inside in list(_inside.items()) if who != thread]) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    _overdue.clear()
    for inside in others:
        _overdue.update(id(native_session(session)) for session in _sessions_of(inside))
    if others and not _warned:
        _warned = True
        log.warning("the process is forked while a session runs or is created, and has for %g seconds", _RUN_SECONDS)
    pools = frozenset().union(*list(_sessions.values())) & (native_threads() - {_thread.get_native_id()})
    end = time.monotonic() + (0 if others else _POOL_SECONDS)
    while not asleep(pools) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)


@in_forked_child
def _inherit() -> None:
    _forking.clear()
    own = _inside.get(get_ident())
    _inside.clear()
    if own:
        _inside[get_ident()] = own
    for native in filter(None, [reference() for reference in _sessions]):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(native))
        options = native.session_options
        in_parallel = options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL and options.inter_op_num_threads != 1
        reason = _WAS_RUNNING if id(native) in _overdue else _IN_PARALLEL if in_parallel else ""
        _inherited[native] = _inherited.get(native) or reason


around_forks(_await_others, _forking.pop)
