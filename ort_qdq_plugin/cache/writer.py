"""Making an entry. The first session borrows its files, so that nothing is written twice."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ort_qdq_plugin.cache.contained import contain, open_again
from ort_qdq_plugin.cache.entry import MODEL, describe, write_file
from ort_qdq_plugin.cache.helper import prepacked_in_another_process
from ort_qdq_plugin.cache.key import Identity, is_of, kind_of_processor
from ort_qdq_plugin.cache.manifest import Manifest, SourceFile, digest_of
from ort_qdq_plugin.cache.portable import portable_source
from ort_qdq_plugin.cache.store import Store
from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.memory.buffer import PackedBuffer, buffer_at
from ort_qdq_plugin.model.sources import FileSource
from ort_qdq_plugin.options import Progress
from ort_qdq_plugin.report import Report
from ort_qdq_plugin.system.platform import files, host
from ort_qdq_plugin.values import replace

__all__ = ["EntryWriter", "YoungSources"]

# Within a step of the clock that gives a file its times, it can be changed more than once, and its times tell of one change
# only. The kernel's clock has steps of 10 ms at the most, that of Windows servers 16 ms. A file system that stores seconds,
# or pairs of them (FAT), is known by a time without fractions.
_STEP_NS, _COARSE_STEP_NS, _SECOND_NS = 20_000_000, 2_000_000_000, 1_000_000_000


class YoungSources(Exception):
    """The model's files are so young that a further change might leave no trace: the model has to be read again later.

    Attributes:
        identities: Of these files. When so much time has passed, what has one of them still is good.
        seconds: How long to wait.

    Never leaves the cache.
    """

    def __init__(self, identities: Collection[Identity], seconds: float) -> None:
        super().__init__(f"files of the model are being written: {len(identities)}")
        self.identities, self.seconds = identities, seconds


class EntryWriter:
    """Writes the entry with one key. The caller holds its lock.

    Args:
        verify: Whether to record digests of all files.
        share: Whether to add pre-packed weights.
        self_contained: Whether its model refers to files of the entry alone, to which the bytes of others are copied. With
            `share` it does in any case: ONNX Runtime looks for pre-packed weights in one folder.
        settled: Files that have this identity are not too young.
        portable: The path of the model, if the entry is to be used on other machines: it can be read by all then, and knows
            the model's files by their content.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        *,
        verify: bool,
        share: bool,
        self_contained: bool = False,
        settled: Collection[Identity] = (),
        portable: str = "",
    ) -> None:
        self._began_ns = time.time_ns()
        self._settled = settled
        self.holder: files.File | None = None  # of the entry, once it is complete: `Entry.holder`
        self.problem = ""  # why it could not be completed
        self.copied_bytes = 0  # of the model's own files
        self._share = share
        self._self_contained = self_contained or share
        self._store = store
        self._key = key
        self._portable = portable
        self._verify = verify or bool(portable)
        self._mode = 0o444 if portable else 0o400  # of files
        self._folder = ""

    def check_age(self, sources: Sequence[FileSource]) -> None:
        """Raise YoungSources if what was read of these files might be changed without a trace. They were opened just now."""
        young = {}
        for source in sources:
            changed_ns, identity = source.status.st_mtime_ns, Identity.of(source.status)
            step_ns = _STEP_NS if changed_ns % _SECOND_NS else _COARSE_STEP_NS
            if changed_ns > self._began_ns - step_ns and identity not in self._settled:
                young[identity] = step_ns
        if young:
            raise YoungSources(young.keys(), max(young.values()) / _SECOND_NS)

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
        report: Report, extensions: bool, foreign: Sequence[str], progress: Progress | None = None,
    ) -> None:  # fmt: skip
        """Complete the entry. The other arguments are those of the manifest.

        If that fails, nothing is left of it, and `problem` says why. The buffers are as good as before.

        Args:
            model: The rewritten model, serialized. It refers to the buffers by the names of their files.
            sources: The files of the model itself, the model file first.
            locations: Path of each of them that the rewritten model refers to -> its location there.
            progress: Called while another process pre-packs.

        Raises:
            YoungSources: The model has to be read again later.
        """
        with self._completing(sources):
            if self._self_contained:
                used = {locations[source.name]: source for source in sources if source.name in locations}
                model, self.copied_bytes = contain(model, used, self._begun())
                report, locations = replace(report, copied_bytes=self.copied_bytes), {}
            write_file(os.path.join(self._begun(), MODEL), model)
            prepacked_bytes = self._prepack(progress) if self._share else 0
            if self._self_contained or self._portable:
                self._set_modes(self._mode)
            written = describe(self._begun(), sorted(os.listdir(self._begun())), self._verify)
            described = self._described(sources, locations)
            processor = kind_of_processor() if prepacked_bytes else ""
            self._finish(described, report, written, extensions, tuple(foreign), prepacked_bytes, processor)

    def commit_nothing(self, sources: Sequence[FileSource], report: Report) -> None:
        """Complete an entry without a model: it records why the model is left to stock (`report.stock_reason`)."""
        with self._completing(sources):
            self._finish(self._described(sources, {}), report)

    def abandon(self) -> None:
        """Remove what was written, unless the entry is complete."""
        if self._folder and self.holder is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _begun(self) -> str:
        if not self._folder:
            # First, so that it is removed wherever an interrupt comes.
            self._folder = self._store.unfinished_path(self._key)
            try:
                self._store.begin(self._key, self._folder)
            except OSError:
                # What is there, if anything is, is not this writer's.
                self._folder = ""
                raise
        return self._folder

    @contextmanager
    def _completing(self, sources: Sequence[FileSource]) -> Iterator[None]:
        self.check_age(sources)
        try:
            yield
        except Exception as problem:
            # Whatever it is: a load must not fail because it cannot be recorded.
            self.problem = str(problem) if isinstance(problem, (OSError, SourceChangedError)) else repr(problem)
            self.abandon()

    def _finish(self, sources: tuple[SourceFile, ...], report: Report, *more: Any) -> None:
        manifest = Manifest(self._key, sources, report, host.boot_id(), *more)
        if self._portable:
            files.set_mode(self._begun(), 0o755)
        self.holder = self._store.commit(self._key, self._begun(), manifest, self._mode)

    def _prepack(self, progress: Progress | None) -> int:
        """Let another process add pre-packed weights to the entry; their size in bytes."""
        self._set_modes(0o600)
        return prepacked_in_another_process(self._begun(), progress)

    def _set_modes(self, mode: int) -> None:
        for name in os.listdir(self._begun()):
            files.set_mode(os.path.join(self._begun(), name), mode)

    def _described(self, sources: Sequence[FileSource], locations: Mapping[str, str]) -> tuple[SourceFile, ...]:
        described = []
        for source in sources:
            with open_again(source) as file:
                digest = digest_of(file) if self._verify else ""
            source.check_unchanged()
            path, names = os.path.realpath(source.name), tuple(sorted(source.names))
            described.append(SourceFile(path, Identity.of(source.status), names, locations.get(source.name, ""), digest))
        if self._portable:
            return tuple(portable_source(one, self._portable) for one in described)
        if not is_of(self._key, described[0].identity):
            raise SourceChangedError(f"{sources[0].name}: changed while it was being loaded")
        return tuple(described)
