"""Spill files that have a name for a while, because ONNX Runtime is to open them by path; and who removes them."""

from __future__ import annotations

import glob
import os
import stat
import subprocess
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

from ort_qdq_plugin.system.forks import in_forked_child
from ort_qdq_plugin.system.platform import files

__all__ = ["Name", "new_names", "open_named", "sweep"]

_PREFIX, _SUFFIX = "ort-qdq-", ".spill"
_RANDOM_BYTES = 8


class Remover:
    """Removes files when this process is killed: a shell that waits for the end of a pipe.

    If none can be started, `sweep` has to do it later.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        _removers.add(self)
        self._left = set(paths)
        self._process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):
            self._process = subprocess.Popen(
                # Nothing is ever written: the pipe ends when this process does.
                ["/bin/sh", "-c", 'read -r line || rm -f -- "$@"', "sh", *paths],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=os.sep,
                env={"PATH": os.defpath},
                # A signal to the whole process group must not end the shell too.
                start_new_session=True,
            )

    def gone(self, path: str) -> None:
        """Say that there is no file at `path` any more, or never was. When that is true of all, the shell ends."""
        self._left.discard(path)
        if self._process is not None and not self._left:
            process, self._process = self._process, None
            process.kill()
            process.communicate()

    def leave_to_parent(self) -> None:
        """In a forked child: let the shell live, and close the pipe, which has to end with the parent."""
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # so that nobody waits for it: it is the parent's child
            if process.stdin is not None:
                process.stdin.close()


_removers: weakref.WeakSet[Remover] = weakref.WeakSet()


@in_forked_child
def _leave_to_parent() -> None:
    for remover in list(_removers):
        remover.leave_to_parent()


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


def open_named(name: Name) -> files.File:
    """A new file of that name, mode 0600, locked; for file systems on which a file cannot get its name later."""
    while True:
        file = files.create(name.path, 0o600)
        files.lock(file)
        if os.fstat(file.fileno()).st_nlink:
            return file
        # Another process's sweep removed it before it was locked.
        file.close()


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
