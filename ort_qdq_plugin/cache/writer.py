"""Making an entry. The first session borrows its files, so that nothing is written twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence

from ort_qdq_plugin.cache.helper import prepacked_in_another_process
from ort_qdq_plugin.cache.manifest import Identity, Manifest, SourceFile
from ort_qdq_plugin.cache.store import LINK, MODEL, Store, describe, digest_at, write_file
from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.memory.buffer import PackedBuffer, buffer_at
from ort_qdq_plugin.model.sources import FileSource
from ort_qdq_plugin.report import Report
from ort_qdq_plugin.system.platform import files, host

__all__ = ["EntryWriter"]


class EntryWriter:
    """Writes the entry with one key. The caller holds its lock.

    Args:
        verify: Whether to record digests of all files.
        share: Whether to add pre-packed weights.
        self_contained: Whether it must contain all files that its model refers to. Those that cannot be linked are copied.
    """

    def __init__(self, store: Store, key: str, *, verify: bool, share: bool, self_contained: bool = False) -> None:
        self.committed = False
        self._share = share
        self._self_contained = self_contained
        self._store = store
        self._key = key
        self._verify = verify
        self._folder = ""
        self._names: list[str] = []

    def make_buffers(self, sizes: Sequence[int]) -> list[PackedBuffer]:
        """Zeroed buffers of these sizes in bytes, each in a file of the entry.

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
        """Complete the entry. The other arguments are those of the manifest.

        Args:
            model: The rewritten model, serialized. It refers to the buffers by the names of their files.
            sources: The files of the model itself, the model file first.
            locations: Path of each of them that the rewritten model refers to -> its location there.

        Raises:
            OSError: It cannot be written.
        """
        write_file(os.path.join(self._begun(), MODEL), model)
        described = tuple(self._described(source, locations.get(source.name, "")) for source in sources)
        prepacked_bytes = self._prepack() if self._share else 0
        names = set(os.listdir(self._begun())) - {source.location for source in described if source.linked}
        written = describe(self._begun(), sorted(names), self._verify)
        self._finish(
            Manifest(self._key, described, report, host.boot_id(), written, extensions, tuple(foreign), prepacked_bytes)
        )

    def commit_nothing(self, sources: Sequence[FileSource], report: Report) -> None:
        """Complete an entry without a model: it records why the model is left to stock (`report.stock_reason`)."""
        described = tuple(self._described(source, "") for source in sources)
        self._finish(Manifest(self._key, described, report, host.boot_id()))

    def abandon(self) -> None:
        """Remove what was written, unless the entry is complete."""
        if self._folder and not self.committed:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _begun(self) -> str:
        if not self._folder:
            self._folder = self._store.begin(self._key)
        return self._folder

    def _finish(self, manifest: Manifest) -> None:
        self._drop_other_links({source.location for source in manifest.sources})
        self._store.commit(self._key, self._begun(), manifest)
        self.committed = True

    def _prepack(self) -> int:
        """Let another process add pre-packed weights to the entry; their size in bytes."""
        for name in self._names:
            os.chmod(os.path.join(self._begun(), name), 0o600)
        nbytes = prepacked_in_another_process(self._begun())
        for name in os.listdir(self._begun()):
            if not name.startswith(LINK):
                os.chmod(os.path.join(self._begun(), name), 0o400)
        return nbytes

    def _drop_other_links(self, wanted: set[str]) -> None:
        for name in os.listdir(self._begun()):
            if name.startswith(LINK) and name not in wanted:
                os.unlink(os.path.join(self._begun(), name))

    def _described(self, source: FileSource, location: str) -> SourceFile:
        path = os.path.realpath(source.name)
        linked = bool(location) and self._link(source, path, location)
        if self._self_contained and location and not linked:
            files.copy_file(path, os.path.join(self._begun(), location))
        digest = digest_at(path) if self._verify else ""
        # Linking has changed its ctime.
        identity = Identity.of(os.stat(path))
        opened = Identity.of(source.status)
        if identity._replace(ctime_ns=0) != opened._replace(ctime_ns=0) or (not linked and identity != opened):
            raise SourceChangedError(f"{path}: changed while it was being loaded")
        return SourceFile(path, identity, tuple(sorted(source.names)), location, linked, digest)

    def _link(self, source: FileSource, path: str, location: str) -> bool:
        """Link a file of the model into the entry, so that ONNX Runtime can open it by path; False if that is impossible."""
        link = os.path.join(self._begun(), location)
        try:
            if os.path.lexists(link):
                if os.path.samestat(os.stat(link, follow_symlinks=False), source.status):
                    return True
                os.unlink(link)
            files.hard_link(path, link)
        except OSError:  # on another file system, or another user's file
            return False
        return True
