"""Making an entry: its files are what the first session borrows, so that nothing is written twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

from ort_qdq_plugin.cache.manifest import Identity, Manifest, SourceFile
from ort_qdq_plugin.cache.store import LINK, MODEL, Store, boot_id, describe, digest_at, write_file
from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.memory.buffer import PackedBuffer, buffer_at
from ort_qdq_plugin.model.sources import FileSource
from ort_qdq_plugin.report import Report

__all__ = ["EntryWriter"]


class EntryWriter:
    """Writes the entry with one key. The caller holds its lock.

    Args:
        store: Where it goes.
        key: Of the entry.
        verify: Whether to record the content of all files.
    """

    def __init__(self, store: Store, key: str, verify: bool) -> None:
        self.committed = False
        self._store = store
        self._key = key
        self._verify = verify
        self._folder = ""
        self._names: list[str] = []

    def make_buffers(self, sizes: Sequence[int]) -> list[PackedBuffer]:
        """Zeroed buffers of so many bytes, in files of the entry.

        Raises:
            OSError: There is no room for them.
        """
        buffers = []
        for index, size in enumerate(sizes):
            self._names.append(f"packed-{index}.bin")
            buffers.append(buffer_at(os.path.join(self._begun(), self._names[-1]), size))
        return buffers

    def commit(
        self, model: bytes, sources: Sequence[FileSource], locations: Mapping[str, str], *,
        report: Report, extensions: bool, foreign: Sequence[str],
    ) -> None:  # fmt: skip
        """Complete the entry.

        Args:
            model: The rewritten model, serialized. It refers to the buffers by the names of their files.
            sources: The files of the model itself, the model file first.
            locations: The path of each of them that the rewritten model refers to -> the location it uses for that.
            report: What was decided.
            extensions: Whether the model has operators of onnxruntime-extensions.
            foreign: Domains of operators that only a custom-op library can have.

        Raises:
            OSError: It cannot be written.
        """
        write_file(os.path.join(self._begun(), MODEL), model)
        self._finish([MODEL, *self._names], sources, locations, report, extensions=extensions, foreign=foreign)

    def commit_nothing(self, sources: Sequence[FileSource], report: Report) -> None:
        """Remember that there is nothing to be done for the model, and why (`report.passed_through`)."""
        self._finish([], sources, {}, report, extensions=False, foreign=())

    def abandon(self) -> None:
        """Remove what was written, unless it was completed."""
        if self._folder and not self.committed:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _begun(self) -> str:
        if not self._folder:
            self._folder = self._store.begin(self._key)
        return self._folder

    def _finish(
        self, names: list[str], sources: Sequence[FileSource], locations: Mapping[str, str], report: Report, *,
        extensions: bool, foreign: Sequence[str],
    ) -> None:  # fmt: skip
        described = tuple(self._described(source, locations.get(source.name, "")) for source in sources)
        self._drop_other_links({source.location for source in described})
        manifest = Manifest(
            sources=described,
            files=describe(self._begun(), names, self._verify),
            report=report,
            extensions=extensions,
            foreign=tuple(foreign),
            boot=boot_id(),
        )
        self._store.commit(self._key, self._begun(), manifest)
        self.committed = True

    def _drop_other_links(self, wanted: set[str]) -> None:
        for name in os.listdir(self._begun()):
            if name.startswith(LINK) and name not in wanted:
                os.unlink(os.path.join(self._begun(), name))

    def _described(self, source: FileSource, location: str) -> SourceFile:
        path = os.path.realpath(source.name)
        linked = bool(location) and self._link(source, path, location)
        digest = digest_at(path) if self._verify else ""
        # Linking has changed one of its times.
        identity = Identity.of(os.stat(path))
        opened = Identity.of(source.status)
        if identity._replace(ctime_ns=0) != opened._replace(ctime_ns=0) or (not linked and identity != opened):
            raise SourceChangedError(f"{path}: changed while it was being loaded")
        return SourceFile(path, identity, location, linked, digest)

    def _link(self, source: FileSource, path: str, location: str) -> bool:
        """Give the entry a link of a file of the model's, where that can be had: then ONNX Runtime can open it by path."""
        link = os.path.join(self._begun(), location)
        try:
            if os.path.lexists(link):
                if os.path.samestat(os.stat(link, follow_symlinks=False), source.status):
                    return True
                os.unlink(link)
            os.link(path, link, follow_symlinks=False)
        except OSError:  # another file system, or somebody else's file
            return False
        return True
