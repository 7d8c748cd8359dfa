"""Seeing to it, in the background, that the files of entries reach the disk."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence

from ort_qdq_plugin.system.platform import files

__all__ = ["wait_until_on_disk", "write_back"]

_NAME = "ort-qdq-cache"  # of the threads


def write_back(path: str, names: Sequence[str], marker: str, discard: Callable[[str], None]) -> None:
    """Have files written to the disk, and say so by another one.

    Args:
        path: Their folder.
        names: Of the files.
        marker: The name of an empty file that the folder gets then.
        discard: Called with the folder if the disk refuses one.
    """
    threading.Thread(target=_write_back, args=(path, names, marker, discard), name=_NAME, daemon=True).start()


def wait_until_on_disk() -> None:
    """Wait for what this process has begun to write back."""
    for thread in threading.enumerate():
        if thread.name == _NAME:
            thread.join()


def _write_back(path: str, names: Sequence[str], marker: str, discard: Callable[[str], None]) -> None:
    for name in names:
        try:
            file = files.open_to_read(os.path.join(path, name))
        except OSError:
            return  # the folder was removed
        with file:
            try:
                os.fsync(file.fileno())
            except OSError:
                discard(path)
                return
    with contextlib.suppress(OSError):
        files.create(os.path.join(path, marker), 0o400).close()
