"""A directory of entries: finding them, adding them, and removing them, so that no process sees half of one.

An entry is written under a temporary name and then renamed, so that it exists as a whole or not at all. A process that makes
one holds the lock of its key; finding one takes no lock.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Iterator

from ort_qdq_plugin import log
from ort_qdq_plugin.cache.entry import MANIFEST, ON_DISK, Entry, open_entry, write_file
from ort_qdq_plugin.cache.lock import exclusive, open_lock
from ort_qdq_plugin.cache.manifest import MAX_BYTES, InvalidEntry, Manifest
from ort_qdq_plugin.cache.write_back import write_back
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.system.platform import files

__all__ = ["LOCK", "Store", "make_directory"]

LOCK, _UNFINISHED, _DISCARDED = ".lock", ".tmp", ".old"
_RANDOM_BYTES = 8

# Seconds that a load waits for whoever holds an entry's lock, before it continues without the cache. While what the other
# one writes grows, it waits on, up to the second limit.
_PATIENCE, _LONG_PATIENCE = 60.0, 600.0


class Store:
    """The entries in one directory, which is made if it does not exist.

    Nothing in a `temporary` one has to reach the disk: it is removed when this process ends.

    Raises:
        PermissionError: Other users can replace what is in it.
        OSError: It cannot be made, or is no directory.
    """

    def __init__(self, folder: str, *, temporary: bool = False) -> None:
        self.folder = os.path.realpath(folder)
        self._temporary = temporary
        _make_parents(self.folder)
        make_directory(self.folder, 0o700)
        files.safe_directory(self.folder)

    def path_of(self, key: str) -> str:
        """The folder of the entry with this key."""
        return os.path.join(self.folder, key)

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """While the block runs, no other process makes the entry with this key. What killed processes left of it is removed.

        Raises:
            OSError: The lock cannot be taken.
        """
        end = time.monotonic() + _LONG_PATIENCE
        with contextlib.ExitStack() as lock:
            while True:
                written = self._written(key)
                try:
                    held = lock.enter_context(exclusive(self.path_of(key) + LOCK, _PATIENCE))
                    break
                except TimeoutError:
                    if time.monotonic() > end or self._written(key) == written:
                        raise
            if held:
                self.sweep(key)
            yield

    def _written(self, key: str) -> list[tuple[str, int, int]]:
        """What there is of the entry that another process makes. It is not the same when more was written."""
        written, unfinished = [], self._leftovers(key)
        if not files.SHARES_FREELY:
            unfinished.append(self.path_of(key))
        for at, _, names in itertools.chain.from_iterable(map(os.walk, unfinished)):
            for path in (at, *(os.path.join(at, name) for name in names)):
                with contextlib.suppress(OSError):
                    status = os.stat(path, follow_symlinks=False)
                    written.append((path, status.st_size, status.st_mtime_ns))
        return written

    def find(self, key: str, *, verify: bool, counts: bool = True) -> Entry | None:
        """The entry with this key, if there is one that can be used.

        With `verify`, the content of all files, also the model's own, is compared with the recorded digests. `counts` says
        whether it is a load that finds it, and not whoever made it.
        """
        try:
            entry = open_entry(self.path_of(key), key, verify=verify)
        except FileNotFoundError:
            return None
        except (InvalidEntry, OSError) as problem:
            log.info("cache entry %s is made anew: %s", self.path_of(key), problem)
            return None
        # Its modification time says when the entry was used last, its size how often.
        lock_path = self.path_of(key) + LOCK
        with contextlib.suppress(OSError), open_lock(lock_path) as lock:
            if counts:
                lock.write(b".")
            else:
                os.utime(lock_path)
        return entry

    def unfinished_path(self, key: str) -> str:
        """Where the files of a new entry with this key can be, until it is complete.

        Where a folder with open files in it cannot be renamed, they are at their place: without a manifest, which is written
        last, a folder is no entry.
        """
        if not files.SHARES_FREELY:
            return self.path_of(key)
        return f"{self.path_of(key)}.{os.urandom(_RANDOM_BYTES).hex()}{_UNFINISHED}"

    def begin(self, key: str, path: str) -> None:
        """Make a folder, at such a path, for the files of a new entry. An unusable entry with the key is removed."""
        if os.path.lexists(self.path_of(key)):
            self.discard(self.path_of(key))
        os.mkdir(path, 0o700)

    def commit(self, key: str, path: str, manifest: Manifest, mode: int = 0o400) -> files.File:
        """Write the manifest, a file of this mode, into an unfinished folder, and make that the entry with this key.

        Its files are written back to the disk in the background. Until that is done, a crash of the system loses the entry;
        it never makes it wrong.

        Returns:
            The `Entry.holder` of the entry.
        """
        name, final, data = os.path.join(path, MANIFEST), self.path_of(key), manifest.to_bytes()
        if len(data) > MAX_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
        write_file(name, data, mode)
        holder = files.open_to_read(name)
        try:
            files.try_lock(holder, shared=True)
            try:
                if path != final:
                    os.rename(path, final)
            except OSError:
                if not os.path.isdir(final):
                    raise
                # On file systems without locks two processes may make the same entry. The other one is as good.
                _remove(path)
                return holder
            if not self._temporary:
                write_back(final, [*(entry.name for entry in manifest.files), MANIFEST], ON_DISK, self.discard)
        except BaseException:
            holder.close()
            raise
        return holder

    def discard(self, path: str) -> None:
        """Remove a file, a link or a folder. A folder is renamed first, so that no process finds half of it."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError:
            condemned = f"{path}.{os.urandom(_RANDOM_BYTES).hex()}{_DISCARDED}"
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, condemned)
            _remove(condemned)

    def sweep(self, key: str) -> None:
        """Remove what killed processes left of this entry while they made it. The caller holds its lock."""
        for path in self._leftovers(key):
            _remove(path)

    def _leftovers(self, key: str) -> list[str]:
        """Paths of unfinished and discarded folders of this entry."""
        names = [name for name in os.listdir(self.folder) if name.startswith(f"{key}.")]
        return [os.path.join(self.folder, name) for name in names if name.endswith((_UNFINISHED, _DISCARDED))]


def make_directory(path: str, mode: int) -> None:
    """Make a directory, unless there is one.

    Raises:
        NotADirectoryError: There is something else.
        OSError: It cannot be made.
    """
    try:
        os.makedirs(path, mode=mode, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None


def _make_parents(path: str) -> None:
    """Make the directories above a path which do not exist, so that others cannot write to them whatever the umask is."""
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _make_parents(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(parent, 0o755)


def _remove(path: str) -> None:
    """Remove a folder, or a file or link of that name."""
    with fork_lock:
        import shutil  # it imports all that compresses
    with contextlib.suppress(OSError):
        os.unlink(path)
    shutil.rmtree(path, ignore_errors=True)
