"""A directory of entries: finding them, adding them, and removing them, so that no process sees half of one.

An entry is a folder that stock ONNX Runtime can open by path. It is written under a temporary name and then renamed, so that
it exists as a whole or not at all. A process that makes one holds the lock of its key; finding one takes no lock. Entries
are the user's own: folders of mode 0700, files of mode 0400. No entry is used that belongs to another user, or that other
users can write to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import NamedTuple

from ort_qdq_plugin import log
from ort_qdq_plugin.cache.key import Identity
from ort_qdq_plugin.cache.lock import exclusive
from ort_qdq_plugin.cache.manifest import EntryFile, InvalidEntry, Manifest, digest_of, parse_manifest
from ort_qdq_plugin.cache.write_back import write_back
from ort_qdq_plugin.system.platform import files, host

__all__ = [
    "LOCK",
    "MANIFEST",
    "MODEL",
    "SHARED_MODEL",
    "Entry",
    "Store",
    "describe",
    "digest_at",
    "write_file",
]

MANIFEST, MODEL, _ON_DISK = "manifest.json", "model.onnx", "on-disk"
SHARED_MODEL = "model-shared.onnx"
"""The model with references to pre-packed weights (see prepack.py)."""

LOCK, _UNFINISHED, _DISCARDED = ".lock", ".tmp", ".old"
_RANDOM_BYTES = 8
_MAX_MANIFEST_BYTES = 256 << 20

# Seconds that a load waits for another process that makes the same entry, before it continues without the cache.
_PATIENCE = 600.0


class Entry(NamedTuple):
    """An entry that was checked and is ready for use."""

    path: str  # of its folder
    manifest: Manifest
    files: dict[str, files.File]  # its files by name, open
    holder: files.File  # its manifest, open, which keeps the entry from being pruned as long as anything refers to it

    def close(self) -> None:
        """Close all files but the holder."""
        for file in self.files.values():
            file.close()


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
            entry = self.checked(key, verify=verify)
        except FileNotFoundError:
            return None
        except (InvalidEntry, OSError) as problem:
            log.info("cache entry %s is made anew: %s", self.path_of(key), problem)
            return None
        # its modification time says when the entry was used last, its size how often.
        with contextlib.suppress(OSError), files.open_to_write(self.path_of(key) + LOCK, append=True) as lock:
            lock.write(b".")
        return entry

    def checked(self, key: str, *, verify: bool) -> Entry:
        """The entry with this key; arguments as of `find`.

        Raises:
            InvalidEntry, OSError: It cannot be used.
        """
        with contextlib.ExitStack() as opened:
            try:
                entry = self._open(key, opened)
                _check_sources(entry.manifest, verify)
                _check_files(entry, verify)
            except (ValueError, TypeError) as error:
                raise InvalidEntry(f"{type(error).__name__}: {error}") from error
            opened.pop_all()
        return entry

    def _open(self, key: str, opened: contextlib.ExitStack) -> Entry:
        path = self.path_of(key)
        with contextlib.closing(files.Folder(path)) as folder:
            _check_private(folder.status(), "its folder")

            def open_file(name: str) -> files.File:
                file = opened.enter_context(files.open_to_read(name, folder=folder))
                _check_private(os.fstat(file.fileno()), name)
                return file

            holder = open_file(MANIFEST)
            if files.try_lock(holder, shared=True) is False:
                raise InvalidEntry("it is being removed")
            size = os.fstat(holder.fileno()).st_size
            if size > _MAX_MANIFEST_BYTES:
                raise InvalidEntry(f"its manifest has {size} bytes")
            manifest = parse_manifest(holder.read(size))
            there = set(folder.names())
            if manifest.key != key:
                raise InvalidEntry("its manifest is that of another entry")
            if there - {MANIFEST, _ON_DISK} != {entry.name for entry in manifest.files}:
                raise InvalidEntry("it has not the files that it should have")
            if _ON_DISK not in there and manifest.boot != host.boot_id():
                raise InvalidEntry("the system was restarted before it was on disk")
            return Entry(path, manifest, {entry.name: open_file(entry.name) for entry in manifest.files}, holder)

    def begin(self, key: str) -> str:
        """Make a folder for the files of a new entry with this key; its path. An unusable entry with the key is removed."""
        path = f"{self.path_of(key)}.{os.urandom(_RANDOM_BYTES).hex()}{_UNFINISHED}"
        os.mkdir(path, 0o700)
        if os.path.lexists(self.path_of(key)):
            self.discard(self.path_of(key))
        return path

    def commit(self, key: str, path: str, manifest: Manifest) -> None:
        """Write the manifest into an unfinished folder, and make it the entry with this key.

        Its files are written back to the disk in the background. Until that is done, a crash of the system loses the entry;
        it never makes it wrong.
        """
        write_file(os.path.join(path, MANIFEST), manifest.to_bytes())
        final = self.path_of(key)
        try:
            os.rename(path, final)
        except OSError:
            if not os.path.isdir(final):
                raise
            # On file systems without locks two processes may make the same entry. The other one is as good.
            shutil.rmtree(path, ignore_errors=True)
            return
        if self._temporary:
            return
        names = [*(entry.name for entry in manifest.files), MANIFEST]
        write_back(final, names, _ON_DISK, self.discard)

    def hold(self, key: str) -> files.File:
        """The `Entry.holder` of the entry with this key."""
        holder = files.open_to_read(os.path.join(self.path_of(key), MANIFEST))
        files.try_lock(holder, shared=True)
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


def _check_private(status: os.stat_result, what: str) -> None:
    if not files.is_private(status):
        raise InvalidEntry(f"{what} belongs to another user, or others can write to it")


def _check_sources(manifest: Manifest, verify: bool) -> None:
    for source in manifest.sources:
        if any(Identity.of(os.stat(path)) != source.identity for path in (source.path, *source.names)):
            raise InvalidEntry(f"{source.path} has changed")
        if verify and source.digest != digest_at(source.path):
            raise InvalidEntry(f"the content of {source.path} has changed, or was not recorded")


def _check_files(entry: Entry, verify: bool) -> None:
    for file in entry.manifest.files:
        opened = entry.files[file.name]
        if os.fstat(opened.fileno()).st_size != file.size:
            raise InvalidEntry(f"{file.name} has not {file.size} bytes")
        # The model itself is small.
        if (verify or file.name in (MODEL, SHARED_MODEL)) and digest_of(opened) != file.digest:
            raise InvalidEntry(f"{file.name} is damaged, or its content was not recorded")


def digest_at(path: str) -> str:
    """The digest of a file's content."""
    with files.open_to_read(path, follow_link=True) as file:
        return digest_of(file)


def describe(path: str, names: list[str], verify: bool) -> tuple[EntryFile, ...]:
    """The files of an unfinished entry, as its manifest has them."""
    described = []
    for name in names:
        file = os.path.join(path, name)
        digest = digest_at(file) if verify or name in (MODEL, SHARED_MODEL) else ""
        described.append(EntryFile(name, os.stat(file).st_size, digest))
    return tuple(described)


def write_file(path: str, data: bytes) -> None:
    """Write a new file of mode 0400."""
    with files.create(path, 0o400) as file:
        files.write_at(file, 0, data)
