"""Making room: the entries that were not used for the longest time go first, those that are in use never."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from ort_qdq_plugin.cache.lock import exclusive
from ort_qdq_plugin.cache.manifest import is_key
from ort_qdq_plugin.cache.store import LOCK, MANIFEST, Store
from ort_qdq_plugin.system.platform import files

__all__ = ["StoredEntry", "prune", "remove", "stored_entries"]

_BLOCK_BYTES = 512  # what st_blocks counts


class StoredEntry(NamedTuple):
    """An entry as it lies there.

    Attributes:
        key: Its name.
        nbytes: What it takes on the disk; links of the model's own files count as well.
        used: When it was used last, in seconds since the epoch.
        hits: How many loads found it.
    """

    key: str
    nbytes: int
    used: float
    hits: int


def stored_entries(store: Store) -> Iterator[StoredEntry]:
    """All entries, in no order."""
    # A clock that was wrong once must not keep an entry for ever.
    now = time.time()
    with os.scandir(store.folder) as found:
        for item in found:
            if not is_key(item.name) or not item.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError), os.scandir(item.path) as inside:
                nbytes = sum(file.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES for file in inside)
                used, hits = 0.0, 0
                with contextlib.suppress(OSError):
                    lock = os.stat(item.path + LOCK)
                    used, hits = min(lock.st_mtime, now), lock.st_size
                yield StoredEntry(item.name, nbytes, used, hits)


def prune(store: Store, max_bytes: int) -> None:
    """Remove entries until all together have at most so many bytes, or only those are left that are in use."""
    entries = sorted(stored_entries(store), key=lambda entry: entry.used)
    total = sum(entry.nbytes for entry in entries)
    for entry in entries:
        if total <= max_bytes:
            return
        if remove(store, entry.key):
            total -= entry.nbytes


def remove(store: Store, key: str) -> bool:
    """Remove an entry, and what killed processes left of it; False if it is in use."""
    path = store.path_of(key)
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        # Nobody is to begin with this entry meanwhile.
        if opened.enter_context(exclusive(path + LOCK, 0.0)):
            store.sweep(key)
        # Nobody can use an entry that has no manifest.
        with contextlib.suppress(FileNotFoundError, files.NotRegularError):
            if files.try_lock(opened.enter_context(files.open_to_read(os.path.join(path, MANIFEST)))) is False:
                return False
        store.discard(path)
        os.unlink(path + LOCK)
        return True
    return False
