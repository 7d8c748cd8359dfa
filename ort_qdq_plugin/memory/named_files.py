"""Spill files that have a name for a while, because ONNX Runtime is to open them by path; and who removes them."""

from __future__ import annotations

import _thread
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress

from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.system.platform import descriptors, files, host
from ort_qdq_plugin.values import NamedTuple

__all__ = ["Name", "new_names", "open_named", "sweep"]

_PREFIX, _SUFFIX = "ort-qdq-", ".spill"
_RANDOM_BYTES = 8

# What the shell is waited for at most: it takes some milliseconds.
_START_SECONDS, _END_SECONDS = 5, 1


class Remover:
    """Removes files when this process is killed: a shell that waits for the end of a pipe.

    The pipe ends with this object, or with the process. If no shell can be started, `sweep` has to remove the files later.
    """

    _pipe: descriptors.Opened | None = None

    def __init__(self, paths: Sequence[str]) -> None:
        self._left = set(paths)
        self._starting, self._running = _thread.allocate_lock(), _thread.allocate_lock()
        if host.SHELL is None:
            return
        self._starting.acquire()
        self._running.acquire()
        end, self._pipe = descriptors.pipe()
        descriptors.close_in_children(self._pipe)
        try:
            _thread.start_new_thread(_watch, (end, paths, self._starting, self._running))
        except RuntimeError:  # there can be no more threads
            self._starting.release()
            self._running.release()

    def wait_until_ready(self) -> None:
        """Wait until the shell runs, or none can be started."""
        if self._starting.acquire(timeout=_START_SECONDS):
            self._starting.release()

    def gone(self, path: str) -> None:
        """Say that there is no file at `path` any more, or never was. When that is true of all, the shell ends."""
        self._left.discard(path)
        if not self._left:
            if self._pipe is not None:
                self._pipe.close()
            if self._running.acquire(timeout=_END_SECONDS):
                self._running.release()


def _watch(end: descriptors.Opened, paths: Sequence[str], starting: _thread.LockType, running: _thread.LockType) -> None:
    """Start the shell, and wait for its end, on a thread of its own: so no interrupt makes a zombie of it."""
    try:
        try:
            # The child of a fork would keep the descriptors by which the shell says that it has started.
            with fork_lock:
                import subprocess

                shell = subprocess.Popen(
                    # Nothing is ever written: the pipe ends when this process does.
                    [str(host.SHELL), "-c", 'read -r line || rm -f -- "$@"', "sh", *paths],
                    stdin=end.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd=os.sep,
                    env={"PATH": os.defpath},
                    # A signal to the whole process group must not end the shell too.
                    start_new_session=True,
                )
        finally:
            end.close()
            starting.release()
        shell.wait()
    except (OSError, RuntimeError):  # no process can be started, or not any more: the interpreter is ending
        pass
    finally:
        running.release()


class Name(NamedTuple):
    """A path that a spill file may get, and who removes the file should this process be killed."""

    path: str
    remover: Remover


def new_names(directory: str, count: int, undo: ExitStack) -> Iterator[Name]:
    paths = [os.path.join(directory, f"{_PREFIX}{os.urandom(_RANDOM_BYTES).hex()}{_SUFFIX}") for _ in range(count)]
    remover = Remover(paths)
    for path in paths:
        undo.callback(remover.gone, path)
        yield Name(path, remover)


def open_named(name: Name) -> tuple[files.File, files.File]:
    """A new file of that name, mode 0600, and what holds its lock; where a file cannot get its name later."""
    name.remover.wait_until_ready()
    while True:
        file = files.create(name.path, 0o600)
        # Another process's sweep may remove it before it is locked.
        with suppress(FileNotFoundError):
            lock = files.open_to_lock(name.path)
            files.lock(lock)
            if os.fstat(file.fileno()).st_nlink:
                return file, lock


def sweep(directory: str) -> None:
    """Remove named spill files of this user in `directory` whose processes are gone."""
    for path in glob.glob(os.path.join(glob.escape(directory), f"{_PREFIX}*{_SUFFIX}")):
        with suppress(OSError):
            if not _is_ours(os.lstat(path)):
                continue
            with files.open_to_write(path) as file:
                if _is_ours(os.fstat(file.fileno())) and files.try_lock(file):
                    os.unlink(path)


def _is_ours(status: os.stat_result) -> bool:
    """Whether this user made it. Others can put anything of such a name there, even hard links to this user's files."""
    return stat.S_ISREG(status.st_mode) and files.is_own(status) and status.st_nlink == 1
