"""Entries: what they consist of, opening one and checking that it can be used, and the files that are written for one.

An entry is a folder with a manifest. It is the user's own: a folder of mode 0700 with files of mode 0400. None is used that
belongs to another user, or that other users can write to. Portable ones, which other users can read, are the exception (see
portable.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection

from ort_qdq_plugin.cache.key import Identity
from ort_qdq_plugin.cache.lock import is_at
from ort_qdq_plugin.cache.manifest import MAX_BYTES, EntryFile, InvalidEntry, Manifest, digest_of, parse_manifest
from ort_qdq_plugin.system.platform import files, host
from ort_qdq_plugin.values import NamedTuple

__all__ = [
    "MANIFEST",
    "MODEL",
    "ON_DISK",
    "SHARED_MODEL",
    "Entry",
    "describe",
    "digest_at",
    "open_entry",
    "read_manifest",
    "write_file",
]

MANIFEST, MODEL, ON_DISK = "manifest.json", "model.onnx", "on-disk"
"""Names of files: `ON_DISK` is an empty one that says that all others have reached the disk."""

SHARED_MODEL = "model-shared.onnx"
"""The model with references to pre-packed weights (see prepack.py)."""


class Entry(NamedTuple):
    """An entry that was checked and is ready for use. All that is read of it is read through what was opened then."""

    path: str  # of its folder
    manifest: Manifest
    files: dict[str, files.File]  # its files by name, open
    identities: dict[str, Identity]  # of these
    holder: files.File  # its manifest, open, which keeps the entry from being pruned as long as anything refers to it

    def close(self) -> None:
        """Close all files but the holder."""
        for file in self.files.values():
            file.close()

    def is_current(self) -> bool:
        """Whether its files are still at their paths.

        Where others open them by path, this is asked afterwards: then what they have opened is the entry.
        """
        with contextlib.suppress(OSError):
            return is_at(self.holder, os.path.join(self.path, MANIFEST)) and all(
                Identity.of(os.stat(os.path.join(self.path, name), follow_symlinks=False)) == identity
                for name, identity in self.identities.items()
            )
        return False

    def has_current_sources(self) -> bool:
        """Whether the model's files are still those that it was made of."""
        with contextlib.suppress(OSError, InvalidEntry):
            _check_sources(self.manifest, verify=False)
            return True
        return False


def open_entry(
    path: str,
    key: str,
    *,
    verify: bool,
    owners: Collection[int] = (),
    localized: Callable[[Manifest], Manifest] = lambda manifest: manifest,
) -> Entry:
    """The entry in this folder.

    Args:
        path: The folder.
        key: The entry's name.
        verify: Whether to compare the content of all files, also of the model's own, with the recorded digests.
        owners: Users that the entry may belong to, beside this one.
        localized: Gives a manifest the paths and identities that the model's files have here.

    Raises:
        InvalidEntry, OSError: It cannot be used.
    """
    with contextlib.ExitStack() as opened:
        try:
            entry = _open(path, key, owners, opened)
            entry = entry._replace(manifest=localized(entry.manifest))
            _check_sources(entry.manifest, verify)
            _check_files(entry, verify)
        except (ValueError, TypeError) as error:
            raise InvalidEntry(f"{type(error).__name__}: {error}") from error
        opened.pop_all()
    return entry


def _open(path: str, key: str, owners: Collection[int], opened: contextlib.ExitStack) -> Entry:
    with contextlib.closing(files.Folder(path)) as folder:
        _check_private(folder.status(), owners, "its folder")

        def open_file(name: str) -> files.File:
            file = opened.enter_context(files.open_to_read(name, folder=folder))
            _check_private(os.fstat(file.fileno()), owners, name)
            return file

        holder = open_file(MANIFEST)
        if files.try_lock(holder, shared=True) is False:
            raise InvalidEntry("it is being removed")
        manifest = read_manifest(holder)
        there = set(folder.names())
        if manifest.key != key:
            raise InvalidEntry("its manifest is that of another entry")
        if there - {MANIFEST, ON_DISK} != {entry.name for entry in manifest.files}:
            raise InvalidEntry("it has not the files that it should have")
        if ON_DISK not in there and manifest.boot != host.boot_id():
            raise InvalidEntry("the system was restarted before it was on disk")
        opened_files = {entry.name: open_file(entry.name) for entry in manifest.files}
        identities = {name: Identity.of(os.fstat(file.fileno())) for name, file in opened_files.items()}
        return Entry(path, manifest, opened_files, identities, holder)


def read_manifest(file: files.File) -> Manifest:
    """The manifest in an open file, wherever that is from.

    Raises:
        InvalidEntry: It cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        raise InvalidEntry(f"its manifest has {size} bytes")
    return parse_manifest(file.read(size))


def _check_private(status: os.stat_result, owners: Collection[int], what: str) -> None:
    if not files.is_private(status, owners):
        raise InvalidEntry(f"{what} belongs to another user, or others can write to it")


def _check_sources(manifest: Manifest, verify: bool) -> None:
    for source in manifest.sources:
        if any(Identity.of(os.stat(path)) != source.identity for path in (source.path, *source.names)):
            raise InvalidEntry(f"{source.path} has changed")
        if verify:
            with files.open_to_read(source.path, follow_link=True) as file:
                digest, identity = digest_of(file), Identity.of(os.fstat(file.fileno()))
            if identity != source.identity or digest != source.digest:
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


def write_file(path: str, data: bytes, mode: int = 0o400) -> None:
    """Write a new file."""
    with files.create(path, mode) as file:
        files.write_at(file, 0, data)
