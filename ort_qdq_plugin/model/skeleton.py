"""A serialized model without its large tensors, and the files that these are in. Nothing of it is parsed yet."""

from __future__ import annotations

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.sources import ByteSource, ExternalFiles, FileSource, MemorySource
from ort_qdq_plugin.model.wire import (
    LENGTH,
    Copied,
    WireReader,
    fresh_location,
    is_ort_format,
    left_out_bytes,
    may_have_external_data,
    without_large_tensors,
)
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.values import NamedTuple

__all__ = ["Skeleton", "open_skeleton"]

_GRAPH = 7 << 3 | LENGTH  # of ModelProto


class Skeleton(NamedTuple):
    """The serialized model without its large tensors, and what the references in it point into."""

    data: bytes
    source: ByteSource  # the model file, or the bytes that the caller gave
    files: ExternalFiles
    inline_location: str  # the location of references to `source` itself, as long as the name of a packed buffer's file

    def mentions(self, op_type: str) -> bool:
        """Whether a node of this type may be in the model; False is certain. Costs no parsing."""
        return op_type.encode() in self.data

    @property
    def inline_bytes(self) -> int:
        """Of the large tensors that are in the model itself; at the most, and hardly fewer."""
        return left_out_bytes(self.source.size, self.data, self.inline_location)

    @property
    def may_have_external_data(self) -> bool:
        """Whether there may be a tensor in another file; False is certain."""
        return may_have_external_data(self.data, self.inline_location)

    @property
    def stored_bytes(self) -> int:
        """Length of the model and of its external data files, as far as tensors were located in them."""
        return sum(source.size for source in self._sources)

    def check_unchanged(self) -> None:
        """Raise SourceChangedError unless the model's files are still what was opened."""
        for source in self._sources:
            source.check_unchanged()

    def close(self) -> None:
        """Close the model's files: nothing more will be read."""
        for source in self._sources:
            source.close()

    @property
    def file_sources(self) -> tuple[FileSource, ...]:
        """The model's files, the model itself first, as far as tensors were located in them."""
        return tuple(source for source in self._sources if isinstance(source, FileSource))

    @property
    def _sources(self) -> tuple[ByteSource, ...]:
        return (self.source, *self.files.opened)


def open_skeleton(model: str | bytes, data_folder: str | None, copied: Copied | None = None) -> Skeleton | None:
    """Open a model, given by its path or as bytes; None for one in ORT format.

    Its external data lies in `data_folder` (``session.model_external_initializers_file_folder_path``). Without that it is
    beside the model file, and a model given as bytes has none. It is not copied anew if it is what was `copied` before.

    Raises:
        ModelError, OSError: The model cannot be read.
    """
    if isinstance(model, bytes):
        source: MemorySource | FileSource = MemorySource(model)
        files = ExternalFiles.within(data_folder) if data_folder else ExternalFiles.none()
    else:
        source = FileSource(model)
        files = ExternalFiles.within(data_folder) if data_folder else ExternalFiles.beside(model)
    head = bytearray(min(8, source.size))
    source.read_into(0, memoryview(head))
    if is_ort_format(head):
        return None
    try:
        if copied is not None and source.is_still(copied.status):
            data, location = copied.data, copied.inline_location
        else:
            location = fresh_location()
            data = without_large_tensors(source, location)
        if not _has_graph(data):
            raise ModelError("it has no graph")
    except ModelError as error:
        with fork_lock:
            from ort_qdq_plugin.model.recognised import why_no_model
        raise ModelError(why_no_model(source, str(error))) from None
    return Skeleton(data, source, files, location)


def _has_graph(data: bytes) -> bool:
    return any(key == _GRAPH for _, key, _, _ in WireReader(data).fields(0, len(data)))
