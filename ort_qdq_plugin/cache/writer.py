"""Making an entry. The first session borrows its files, so that nothing is written twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ort_qdq_plugin.cache.contained import contain
from ort_qdq_plugin.cache.helper import prepacked_in_another_process
from ort_qdq_plugin.cache.manifest import Identity, Manifest, SourceFile
from ort_qdq_plugin.cache.store import MODEL, Store, describe, digest_at, write_file
from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.memory.buffer import PackedBuffer, buffer_at
from ort_qdq_plugin.model.sources import FileSource
from ort_qdq_plugin.report import Report
from ort_qdq_plugin.system.platform import host

__all__ = ["EntryWriter"]


class EntryWriter:
    """Writes the entry with one key. The caller holds its lock.

    Args:
        verify: Whether to record digests of all files.
        share: Whether to add pre-packed weights.
        self_contained: Whether its model refers to files of the entry alone, to which the bytes of others are copied. With
            `share` it does in any case: ONNX Runtime looks for pre-packed weights in one folder.
    """

    def __init__(self, store: Store, key: str, *, verify: bool, share: bool, self_contained: bool = False) -> None:
        self.committed = False
        self.copied_bytes = 0  # of the model's own files
        self._share = share
        self._self_contained = self_contained or share
        self._store = store
        self._key = key
        self._verify = verify
        self._folder = ""

    def make_buffers(self, sizes: Sequence[int]) -> list[PackedBuffer]:
        """Zeroed buffers of these sizes in bytes, each in a file of the entry.

        Raises:
            OSError: There is no room for them.
        """
        buffers = []
        for index, size in enumerate(sizes):
            buffers.append(buffer_at(os.path.join(self._begun(), f"packed-{index}.bin"), size))
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
        if self._self_contained:
            used = {locations[source.name]: source for source in sources if source.name in locations}
            model, self.copied_bytes = contain(model, used, self._begun())
            report, locations = replace(report, copied_bytes=self.copied_bytes), {}
        write_file(os.path.join(self._begun(), MODEL), model)
        described = tuple(self._described(source, locations.get(source.name, "")) for source in sources)
        prepacked_bytes = self._prepack() if self._share else 0
        if self._self_contained:
            self._set_modes(0o400)
        written = describe(self._begun(), sorted(os.listdir(self._begun())), self._verify)
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
        self._store.commit(self._key, self._begun(), manifest)
        self.committed = True

    def _prepack(self) -> int:
        """Let another process add pre-packed weights to the entry; their size in bytes."""
        self._set_modes(0o600)
        return prepacked_in_another_process(self._begun())

    def _set_modes(self, mode: int) -> None:
        for name in os.listdir(self._begun()):
            os.chmod(os.path.join(self._begun(), name), mode)

    def _described(self, source: FileSource, location: str) -> SourceFile:
        path = os.path.realpath(source.name)
        digest = digest_at(path) if self._verify else ""
        identity = Identity.of(os.stat(path))
        if identity != Identity.of(source.status):
            raise SourceChangedError(f"{path}: changed while it was being loaded")
        return SourceFile(path, identity, tuple(sorted(source.names)), location, digest)
