"""A directory of entries: finding them, making room for them, and letting no process see half of one.

An entry is a folder that stock ONNX Runtime can open by path. It is written under a temporary name and gets its own by one
rename, so that it is there as a whole or not at all. Whoever makes one holds the lock of its key; finding one takes no lock.
Entries are the user's own: folders of mode 0700, files of mode 0400. None is used that belongs to somebody else, or that
others can write to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from typing import NamedTuple

from ort_qdq_plugin import log
from ort_qdq_plugin.cache.lock import exclusive, hold_shared
from ort_qdq_plugin.cache.manifest import (
    EntryFile,
    Identity,
    InvalidEntry,
    Manifest,
    SourceFile,
    digest_of,
    parse_manifest,
)
from ort_qdq_plugin.cache.write_back import write_back

__all__ = [
    "LINK",
    "LOCK",
    "MANIFEST",
    "MODEL",
    "SHARED_DATA",
    "SHARED_MODEL",
    "Entry",
    "Store",
    "boot_id",
    "describe",
    "digest_at",
    "write_file",
]

MANIFEST, MODEL, _ON_DISK = "manifest.json", "model.onnx", "on-disk"
SHARED_MODEL, SHARED_DATA = "model-shared.onnx", "shared.bin"
"""The model with references to pre-packed weights, and tensors that had to be copied for it (see prepack.py)."""

LINK = "data-"
"""What the names of links begin with."""

LOCK, _UNFINISHED, _DISCARDED = ".lock", ".tmp", ".old"
_RANDOM_BYTES = 8
_MAX_MANIFEST_BYTES = 256 << 20

# Seconds that a load waits for another process that makes the same entry, before it does without the cache.
_PATIENCE = 600.0


class Entry(NamedTuple):
    """An entry that was checked and is ready for use.

    Attributes:
        path: Its folder.
        manifest: What it says of itself.
        files: A descriptor for each of its files, by name. The caller closes them.
        holder: A descriptor that keeps the entry from being pruned while it is open.
    """

    path: str
    manifest: Manifest
    files: dict[str, int]
    holder: int

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor in (*self.files.values(), self.holder):
            os.close(descriptor)


class Store:
    """The entries in one directory, which is made if it does not exist.

    Args:
        folder: The directory.
        temporary: Whether nothing has to reach the disk.

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
        """While the block runs, nobody else makes the entry with this key. What killed processes left of it is removed.

        Raises:
            OSError: The lock cannot be had.
        """
        with exclusive(self.path_of(key) + LOCK, _PATIENCE) as held:
            if held:
                self.sweep(key)
            yield

    def find(self, key: str, *, verify: bool) -> Entry | None:
        """The entry with this key, if there is one that can be used.

        Args:
            key: Of the entry.
            verify: Whether to compare the content of all files, also the model's own, with what it was.
        """
        try:
            entry = self.checked(key, verify=verify)
        except FileNotFoundError:
            return None
        except (InvalidEntry, OSError) as problem:
            log.info("cache entry %s is made anew: %s", self.path_of(key), problem)
            return None
        # When it was used last, and how often: a byte for each time.
        with contextlib.suppress(OSError):
            lock = os.open(self.path_of(key) + LOCK, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.write(lock, b".")
            finally:
                os.close(lock)
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
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_private(os.fstat(folder), "its folder")

            def open_file(name: str) -> int:
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                opened.callback(os.close, descriptor)
                status = os.fstat(descriptor)
                _check_private(status, name)
                if not stat.S_ISREG(status.st_mode):
                    raise InvalidEntry(f"{name} is no file")
                return descriptor

            holder = open_file(MANIFEST)
            if hold_shared(holder) is False:
                raise InvalidEntry("it is being removed")
            size = os.fstat(holder).st_size
            if size > _MAX_MANIFEST_BYTES:
                raise InvalidEntry(f"its manifest has {size} bytes")
            manifest = parse_manifest(os.pread(holder, size, 0))
            there = set(os.listdir(folder))
            if manifest.key != key:
                raise InvalidEntry("its manifest is that of another entry")
            linked = {source.location for source in manifest.sources if source.linked}
            if there - {MANIFEST, _ON_DISK} != linked | {entry.name for entry in manifest.files}:
                raise InvalidEntry("it has not the files that it should have")
            for source in manifest.sources:
                if source.linked and not _is_same(folder, source):
                    raise InvalidEntry(f"{source.location} is not the file that it was")
            if _ON_DISK not in there and manifest.boot != boot_id():
                raise InvalidEntry("the system was restarted before it was on disk")
            return Entry(path, manifest, {entry.name: open_file(entry.name) for entry in manifest.files}, holder)
        finally:
            os.close(folder)

    def begin(self, key: str) -> str:
        """Make a folder in which the entry with this key is written; its path.

        Of an entry that cannot be used any more, links of the model's files stay: making new ones, or renaming them, would
        change those files' times, by which other entries know them.
        """
        path = f"{self.path_of(key)}.{os.urandom(_RANDOM_BYTES).hex()}{_UNFINISHED}"
        try:
            os.rename(self.path_of(key), path)
            _check_private(os.stat(path, follow_symlinks=False), "its folder")
            for name in os.listdir(path):
                if not name.startswith(LINK):
                    os.unlink(os.path.join(path, name))
        except (OSError, InvalidEntry):
            if os.path.lexists(path):
                self.discard(path)
                path += _UNFINISHED
            os.mkdir(path, 0o700)
        return path

    def commit(self, key: str, path: str, manifest: Manifest) -> None:
        """Write the manifest into an unfinished folder, and make it the entry with this key.

        Its files are written to the disk in the background. Until that is known, the entry does not survive a crash of the
        system; it never is wrong.
        """
        write_file(os.path.join(path, MANIFEST), manifest.to_bytes())
        final = self.path_of(key)
        try:
            os.rename(path, final)
        except OSError:
            if not os.path.isdir(final):
                raise
            # On file systems without locks two may make the same entry. The other one is as good.
            shutil.rmtree(path, ignore_errors=True)
            return
        if self._temporary:
            return
        names = [*(entry.name for entry in manifest.files), MANIFEST]
        write_back(final, names, _ON_DISK, self.discard)

    def hold(self, key: str) -> int:
        """Keep the entry with this key from being pruned; a descriptor to be closed when it need not be any longer."""
        descriptor = os.open(os.path.join(self.path_of(key), MANIFEST), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        hold_shared(descriptor)
        return descriptor

    def discard(self, path: str) -> None:
        """Remove a folder. It is renamed first, so that nobody finds half of it."""
        condemned = f"{path}.{os.urandom(_RANDOM_BYTES).hex()}{_DISCARDED}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, condemned)
        _remove(condemned)

    def sweep(self, key: str) -> None:
        """Remove what processes left that were killed while they made this entry. Its lock is held."""
        with os.scandir(self.folder) as found:
            names = [item.name for item in found if item.name.startswith(f"{key}.")]
        for name in names:
            if name.endswith((_UNFINISHED, _DISCARDED)):
                _remove(os.path.join(self.folder, name))


def boot_id() -> str:
    """The present start of the system; "" if it does not tell."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def _remove(path: str) -> None:
    """Remove a folder, or what somebody has put into its place."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    shutil.rmtree(path, ignore_errors=True)


def _check_private(status: os.stat_result, what: str) -> None:
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidEntry(f"{what} belongs to another user, or others can write to it")


def _check_sources(manifest: Manifest, verify: bool) -> None:
    for source in manifest.sources:
        if any(Identity.of(os.stat(path)) != source.identity for path in (source.path, *source.names)):
            raise InvalidEntry(f"{source.path} has changed")
        if verify and source.digest != digest_at(source.path):
            raise InvalidEntry(f"the content of {source.path} has changed, or was not recorded")


def _check_files(entry: Entry, verify: bool) -> None:
    for file in entry.manifest.files:
        descriptor = entry.files[file.name]
        if os.fstat(descriptor).st_size != file.size:
            raise InvalidEntry(f"{file.name} has not {file.size} bytes")
        # The model itself is small.
        if (verify or file.name in (MODEL, SHARED_MODEL)) and digest_of(descriptor) != file.digest:
            raise InvalidEntry(f"{file.name} is damaged, or its content was not recorded")


def _is_same(folder: int, source: SourceFile) -> bool:
    """Whether the entry's link of a source is that very file."""
    status = os.stat(source.location, dir_fd=folder, follow_symlinks=False)
    return (status.st_ino, status.st_dev) == (source.identity.inode, source.identity.device)


def digest_at(path: str) -> str:
    """The digest of a file's content."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return digest_of(descriptor)
    finally:
        os.close(descriptor)


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
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)
