"""A directory of entries: finding them, adding them, and removing them, so that no process sees half of one.

An entry is written under a temporary name and then renamed, so that it exists as a whole or not at all. A process that makes
one holds the lock of its key; finding one takes no lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from ort_qdq_plugin import log
from ort_qdq_plugin.cache.entry import MANIFEST, ON_DISK, Entry, open_entry, write_file
from ort_qdq_plugin.cache.lock import exclusive
from ort_qdq_plugin.cache.manifest import InvalidEntry, Manifest
from ort_qdq_plugin.cache.write_back import write_back
from ort_qdq_plugin.system.platform import files

__all__ = ["LOCK", "Store"]

LOCK, _UNFINISHED, _DISCARDED = ".lock", ".tmp", ".old"
_RANDOM_BYTES = 8

# Seconds that a load waits for another process that makes the same entry, before it continues without the cache.
_PATIENCE = 600.0


class Store:
    """The entries in one directory, which is made if it does not exist.

    Nothing in a `temporary` one has to reach the disk: it is removed when this process ends.

    Raises:
        OSError: It cannot be made, or is no directory.
    """

    def __init__(self, folder: str, *, temporary: bool = False) -> None:
        self.folder = os.path.realpath(folder)
        self._temporary = temporary
        os.makedirs(self.folder, mode=0o700, exist_ok=True)

    def path_of(self, key: str) -> str:
        """The folder of the entry with this key."""
        return os.path.join(self.folder, key)

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """While the block runs, no other process makes the entry with this key. What killed processes left of it is removed.

        Raises:
            OSError: The lock cannot be taken.
        """
        with exclusive(self.path_of(key) + LOCK, _PATIENCE) as held:
            if held:
                self.sweep(key)
            yield

    def find(self, key: str, *, verify: bool) -> Entry | None:
        """The entry with this key, if there is one that can be used.

        With `verify`, the content of all files, also the model's own, is compared with the recorded digests.
        """
        try:
            entry = open_entry(self.path_of(key), key, verify=verify)
        except FileNotFoundError:
            return None
        except (InvalidEntry, OSError) as problem:
            log.info("cache entry %s is made anew: %s", self.path_of(key), problem)
            return None
        # its modification time says when the entry was used last, its size how often.
        with contextlib.suppress(OSError), files.open_to_write(self.path_of(key) + LOCK, append=True) as lock:
            lock.write(b".")
        return entry

    def begin(self, key: str) -> str:
        """Make a folder for the files of a new entry with this key; its path. An unusable entry with the key is removed."""
        path = f"{self.path_of(key)}.{os.urandom(_RANDOM_BYTES).hex()}{_UNFINISHED}"
        os.mkdir(path, 0o700)
        if os.path.lexists(self.path_of(key)):
            self.discard(self.path_of(key))
        return path

    def commit(self, key: str, path: str, manifest: Manifest) -> files.File:
        """Write the manifest into an unfinished folder, and make it the entry with this key.

        Its files are written back to the disk in the background. Until that is done, a crash of the system loses the entry;
        it never makes it wrong.

        Returns:
            The `Entry.holder` of the entry.
        """
        name, final = os.path.join(path, MANIFEST), self.path_of(key)
        write_file(name, manifest.to_bytes())
        holder = files.open_to_read(name)
        try:
            files.try_lock(holder, shared=True)
            try:
                os.rename(path, final)
            except OSError:
                if not os.path.isdir(final):
                    raise
                # On file systems without locks two processes may make the same entry. The other one is as good.
                shutil.rmtree(path, ignore_errors=True)
                return holder
            if not self._temporary:
                write_back(final, [*(entry.name for entry in manifest.files), MANIFEST], ON_DISK, self.discard)
        except BaseException:
            holder.close()
            raise
        return holder

    def discard(self, path: str) -> None:
        """Remove a folder. It is renamed first, so that no process finds half of it."""
        condemned = f"{path}.{os.urandom(_RANDOM_BYTES).hex()}{_DISCARDED}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, condemned)
        _remove(condemned)

    def sweep(self, key: str) -> None:
        """Remove what killed processes left of this entry while they made it. The caller holds its lock."""
        with os.scandir(self.folder) as found:
            names = [item.name for item in found if item.name.startswith(f"{key}.")]
        for name in names:
            if name.endswith((_UNFINISHED, _DISCARDED)):
                _remove(os.path.join(self.folder, name))


def _remove(path: str) -> None:
    """Remove a folder, or a file or link of that name."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    shutil.rmtree(path, ignore_errors=True)
