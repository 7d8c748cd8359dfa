"""Writing the files of entries back to the disk, in the background."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence

from ort_qdq_plugin import log
from ort_qdq_plugin.system.forks import in_forked_child
from ort_qdq_plugin.system.platform import files
from ort_qdq_plugin.system.threads import Work

__all__ = ["wait_until_on_disk", "write_back"]

_POLL_SECONDS = 0.005
# What a file system without the call says, or a sandbox: nothing is wrong with the files.
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EROFS}

_begun: set[Work[None]] = set()


@in_forked_child
def _begin_anew_in_child() -> None:
    """The threads are the parent's."""
    _begun.clear()


def write_back(path: str, names: Sequence[str], marker: str, discard: Callable[[str], None]) -> None:
    """Start to write files of a folder back to the disk; then make an empty one, `marker`, that marks them as written.

    `discard` is called with the folder if a file cannot be written back. Where ONNX Runtime cannot open them meanwhile, this
    waits until all is done.
    """

    def action() -> None:
        try:
            _write_back(path, names, marker, discard)
        finally:
            _begun.discard(work)

    work = Work(action)
    _begun.add(work)
    if not files.SHARES_FREELY:
        work.run()
        return
    try:
        work.start()
    except RuntimeError:  # no thread can be had
        work.run()


def wait_until_on_disk() -> None:
    """Wait until everything that this process has begun to write back is on the disk."""
    for work in list(_begun):
        # An interrupt may have come before its thread.
        work.run()
        while not work.ended:
            time.sleep(_POLL_SECONDS)


def _write_back(path: str, names: Sequence[str], marker: str, discard: Callable[[str], None]) -> None:
    # The folder is held open: another entry may take its path meanwhile, of which not everything is on the disk.
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        folder = opened.enter_context(contextlib.closing(files.Folder(path)))
        for name in names:
            file = opened.enter_context(files.open_to_write_back(name, folder))
            try:
                os.fsync(file.fileno())
            except OSError as problem:
                if problem.errno not in _NOT_SUPPORTED:
                    discard(path)
                    log.warning("an entry of the cache is removed, since it cannot be written to the disk: %s", problem)
                return
        files.mark(folder, marker)
