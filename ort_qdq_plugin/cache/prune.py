"""Removing entries: the least recently used first, and none that is in use."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator

from ort_qdq_plugin.cache.entry import MANIFEST
from ort_qdq_plugin.cache.key import is_key, place_of
from ort_qdq_plugin.cache.lock import exclusive
from ort_qdq_plugin.cache.store import LOCK, Store
from ort_qdq_plugin.system.platform import files
from ort_qdq_plugin.values import NamedTuple

__all__ = ["KEPT", "StoredEntry", "keep_recent", "prune", "remove", "stored_entries", "unfinished_entries"]

KEPT = 4
"""Entries of one model, loaded in one way, that are kept while the file at its path is replaced by others."""


class StoredEntry(NamedTuple):
    """An entry on the disk."""

    key: str
    nbytes: int  # its size on the disk
    used: float  # when it was used last, in seconds since the epoch
    hits: int  # how many loads found it; to make it ready, as `warm` does, is none


def stored_entries(store: Store) -> Iterator[StoredEntry]:
    """All entries, in no order."""
    for key in filter(is_key, os.listdir(store.folder)):
        path = store.path_of(key)
        with contextlib.suppress(OSError):
            if not os.path.islink(path):
                inside = [os.lstat(os.path.join(path, name)) for name in os.listdir(path)]
                yield StoredEntry(key, sum(map(files.allocated_bytes, inside)), *_last_use(path))


def _keys(store: Store) -> set[str]:
    """The keys of all entries, and of those that were not, or not yet, completed."""
    return {key for name in os.listdir(store.folder) if is_key(key := name.partition(".")[0])}


def unfinished_entries(store: Store) -> dict[str, int]:
    """Keys of entries that were not, or not yet, completed -> what there is of them, in bytes on the disk."""
    left = dict.fromkeys(_keys(store) - {entry.key for entry in stored_entries(store)}, 0)
    for name in os.listdir(store.folder):
        if (key := name.partition(".")[0]) in left:
            left[key] += _allocated(os.path.join(store.folder, name))
    return left


def _allocated(path: str) -> int:
    """What a file, or a folder with all that is in it, takes on the disk."""
    paths = [path, *(os.path.join(at, name) for at, _, names in os.walk(path) for name in names)]
    total = 0
    for one in paths:
        with contextlib.suppress(OSError):
            status = os.lstat(one)
            total += 0 if stat.S_ISDIR(status.st_mode) else files.allocated_bytes(status)
    return total


def keep_recent(store: Store, key: str) -> None:
    """Of the entries whose place is that of this key, remove all but the most recently used, unless they are in use."""
    siblings = [other for other in _keys(store) if place_of(other) == place_of(key) and other != key]
    siblings.sort(key=lambda other: _last_use(store.path_of(other)).used)
    for other in siblings[: -(KEPT - 1)]:
        remove(store, other)


def prune(store: Store, max_bytes: int) -> None:
    """Remove entries until all together have at most this size, or only entries in use are left."""
    entries = sorted(stored_entries(store), key=lambda entry: entry.used)
    total = sum(entry.nbytes for entry in entries)
    for entry in entries:
        if total <= max_bytes:
            return
        if remove(store, entry.key):
            total -= entry.nbytes


class _Use(NamedTuple):
    used: float
    hits: int


def _last_use(path: str) -> _Use:
    with contextlib.suppress(OSError):
        lock = os.stat(path + LOCK)
        # A clock that was ahead once must not keep an entry for ever.
        return _Use(min(lock.st_mtime, time.time()), lock.st_size)
    return _Use(0.0, 0)


def remove(store: Store, key: str) -> bool:
    """Remove an entry, and what killed processes left of it; False if it is in use."""
    path = store.path_of(key)
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        # With the lock, no other process can begin to make this entry. Without a lock that can be taken, none ever does.
        with contextlib.suppress(files.NotRegularError):
            if opened.enter_context(exclusive(path + LOCK, 0.0)):
                store.sweep(key)
        # An entry without a manifest cannot be in use.
        with contextlib.suppress(FileNotFoundError, files.NotRegularError):
            manifest = opened.enter_context(files.open_to_read(os.path.join(path, MANIFEST)))
            if files.try_lock(manifest) is False:
                return False
            if not files.SHARES_FREELY:
                # A folder with an open file in it cannot be renamed; if another one opens it meanwhile, it stays.
                manifest.close()
        store.discard(path)
        store.discard(path + LOCK)
        return True
    return False
