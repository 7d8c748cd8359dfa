"""Writing a prepared model to a file: an ordinary QOperator model that stock ONNX Runtime loads anywhere.

Weights are copied from the packed buffers and from the model's files, a few megabytes at a time.

Format facts: protobuf's wire format, and ONNX's ExternalData.md, by which offsets are multiples of a page.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from io import BufferedWriter, FileIO
from typing import BinaryIO, Literal

from ort_qdq_plugin.arguments import takes_options
from ort_qdq_plugin.errors import LeaveToStock, ModelError, QdqPluginError, readable, writing_to
from ort_qdq_plugin.load.journal import Journal, shown, tell_stage
from ort_qdq_plugin.load.journey import prepare
from ort_qdq_plugin.load.open import check_readable
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.model.encoding import bytes_field, bytes_head
from ort_qdq_plugin.model.messages import ModelProto, TensorProto, external_data, external_tensors, refer
from ort_qdq_plugin.options import Options, Progress
from ort_qdq_plugin.report import Report
from ort_qdq_plugin.system.platform import host
from ort_qdq_plugin.values import NamedTuple, replace

__all__ = ["export", "write_model"]

_COPIED_BYTES = 8 << 20  # at a time
_ALIGNMENT = 4096
_MAX_INLINE_BYTES = (1 << 31) - 1  # of a message (protobuf's documentation, "total size")
_RANDOM_BYTES = 8

# Numbers of the fields ModelProto.graph, GraphProto.initializer and TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9


@takes_options()
def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    external_data: bool = False,
    force: bool = False,
    progress: Progress | Literal["bar"] | None = None,
    options: Options | None = None,
) -> Report:
    """Write a model with its dequantized products fused.

    Args:
        model: The path of an ONNX model.
        out: The path of the new one.
        external_data: Whether its weights go to a file of their own, the path followed by ".data". A model of 2 GiB or
            more needs one.
        force: Whether existing files may be replaced.
        progress: In place of that of `options`: called with (bytes done, bytes in all), first while weights are packed, then
            while they are written; or "bar".
        options: Options of this package, of which accuracy level and block size have an effect on the new model; and so has
            `Options.dequantize_once`, if it is "always".

    Returns:
        A `Report` whose route is "export": what was fused, and what was not.

    Raises:
        FileExistsError: The file exists already.
        IsADirectoryError: It is a folder.
        QdqPluginError: There is nothing to fuse in the model, or it would have 2 GiB or more in one file.
        ModelError, OSError: It cannot be read, or the new one cannot be written.
    """
    path = os.fspath(out)
    data_path = f"{path}.data" if external_data else None
    for wanted in filter(None, (path or os.curdir, data_path)):
        _check_new(wanted, force)
    chosen = options or Options()
    if progress is not None:
        chosen = replace(chosen, progress=progress)
    try:
        with shown(chosen.progress, model) as told:
            return write_model(LoadRequest(os.fspath(model), None, chosen), path, data_path, told)
    except LeaveToStock as stock:
        raise QdqPluginError(f"{os.fspath(model)}: {stock}") from None


def _check_new(path: str, force: bool) -> None:
    """Raise OSError if no file can be written at a path, or there is one that is not to be replaced."""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "a folder: name a file, such as model.onnx in it", path)
    if os.path.exists(path) and not os.path.isfile(path):
        # A device, for instance, in whose place the new file would be.
        raise OSError(errno.EINVAL, "not a regular file, and no others are replaced", path)
    if os.path.lexists(path) and not force:
        raise FileExistsError(errno.EEXIST, "is there already", path)
    folder = os.path.dirname(os.path.abspath(path))
    os.stat(folder)  # so that an error names this folder, and no temporary file in it
    if not os.path.isdir(folder):
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", folder)


def write_model(request: LoadRequest, path: str, data_path: str | None, progress: Progress | None = None) -> Report:
    """Write the model of a request, fused. The new files replace existing ones of the same names when they are complete.

    Its weights go to `data_path`, or inside if that is None. Of the session options, accuracy level and block size count.

    Raises:
        LeaveToStock: There is nothing to fuse in the model.
        QdqPluginError: It would have 2 GiB or more in one file.
        ModelError, OSError: It cannot be read, or the new one cannot be written.
    """
    # The other session options could send weights by path, but no session is created.
    options = replace(
        request.options,
        accuracy_level=request.accuracy_level,
        block_size=request.block_size,
        cache_dir=None,
        share_weights=False,
        buffer="file",
        # A file is not to grow unless that is asked for.
        dequantize_once="always" if request.options.dequantize_once == "always" else "never",
    )
    journal = Journal(progress)
    with ExitStack() as undo:
        try:
            prepared = prepare(request._replace(session_options=None, options=options, creates_session=False), journal)
        except LeaveToStock as stock:
            check_readable(stock)
            raise
        for buffer in prepared.packed:
            undo.callback(buffer.discard)
        assert isinstance(prepared.model, bytes)
        with readable():
            proto = ModelProto.FromString(prepared.model)
        tell_stage(progress, "write")
        with writing_to(path), ExitStack() as unfinished:
            written = _Written(path, data_path, unfinished)
            write = _write_inline if data_path is None else _write_beside
            write(proto, _Stored(prepared.buffers, progress), written)
            written.commit()
    return replace(prepared.report, route="export")


class _Reference(NamedTuple):
    location: str
    offset: int
    nbytes: int


class _Stored:
    """The bytes that a prepared model refers to."""

    def __init__(self, buffers: Mapping[str, mmap.mmap | bytes], progress: Progress | None) -> None:
        self._buffers = dict(buffers)
        self._progress = progress or (lambda _done, _total: None)
        self._done = self._total = 0

    def reference(self, tensor: TensorProto) -> _Reference:
        """The reference of a tensor; raises ModelError where it is to bytes that do not exist."""
        entries = external_data(tensor)
        found = _Reference(entries["location"], int(entries.get("offset", 0)), int(entries.get("length", 0)))
        buffer = self._buffers.get(found.location)
        if buffer is None or found.offset + found.nbytes > len(buffer):
            raise ModelError(f"{tensor.name}: its external data does not exist")
        return found

    def expect(self, references: Iterable[_Reference]) -> None:
        """Say what will be copied, for the progress."""
        self._total = sum(reference.nbytes for reference in references)

    def copy(self, reference: _Reference, file: BinaryIO) -> None:
        """Write the bytes of a reference to a file, a piece at a time. Pages of files are dropped after each."""
        buffer, end = self._buffers[reference.location], reference.offset + reference.nbytes
        for at in range(reference.offset, end, _COPIED_BYTES):
            length = min(_COPIED_BYTES, end - at)
            file.write(buffer[at : at + length])
            if isinstance(buffer, mmap.mmap):
                host.drop_pages(buffer, at, length)
            self._done += length
            self._progress(self._done, self._total)


class _Written:
    """New files under temporary names, which get their final names when both are complete."""

    def __init__(self, path: str, data_path: str | None, undo: ExitStack) -> None:
        self._undo = undo
        self._names: dict[str, str] = {}
        self.data = None if data_path is None else self._new(data_path)
        self.data_name = "" if data_path is None else os.path.basename(data_path)
        self.model = self._new(path)

    def _new(self, path: str) -> BinaryIO:
        name = f"{path}.{os.urandom(_RANDOM_BYTES).hex()}.tmp"
        self._names[name] = path
        # After it was closed: some systems remove and rename no file that is open.
        self._undo.callback(_remove, name)
        try:
            return self._undo.enter_context(BufferedWriter(FileIO(name, "x")))
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None

    def commit(self) -> None:
        """Give the files their final names, the data first."""
        for file in filter(None, (self.data, self.model)):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for name, path in self._names.items():
            os.replace(name, path)


def _remove(path: str) -> None:
    """Remove a file, if that is possible: there is another error to tell of, or nothing to remove."""
    with suppress(OSError):
        os.unlink(path)


def _write_beside(proto: ModelProto, stored: _Stored, written: _Written) -> None:
    """Write weights into the data file, each once, and the model with references to them."""
    assert written.data is not None
    offsets: dict[_Reference, int] = {}
    stored.expect({stored.reference(tensor) for tensor in external_tensors(proto.graph)})
    for tensor in external_tensors(proto.graph):
        reference = stored.reference(tensor)
        if reference not in offsets:
            written.data.seek(-(-written.data.tell() // _ALIGNMENT) * _ALIGNMENT)
            offsets[reference] = written.data.tell()
            stored.copy(reference, written.data)
        refer(tensor, written.data_name, offsets[reference], reference.nbytes)
    written.model.write(proto.SerializeToString())


def _write_inline(proto: ModelProto, stored: _Stored, written: _Written) -> None:
    """Write the model with its weights inside: its own fields, then its graph's, then the graph's weights."""
    outside = [tensor for tensor in proto.graph.initializer if tensor.data_location == tensor.EXTERNAL]
    if len(outside) != sum(1 for _ in external_tensors(proto.graph)):
        raise ModelError("a subgraph has external data")
    small = [tensor.SerializeToString() for tensor in proto.graph.initializer if tensor.data_location != tensor.EXTERNAL]
    heads = []
    for tensor in outside:
        reference = stored.reference(tensor)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        head = tensor.SerializeToString() + bytes_head(_RAW_DATA, reference.nbytes)
        heads.append((bytes_head(_INITIALIZER, len(head) + reference.nbytes) + head, reference))
    stored.expect(reference for _, reference in heads)
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString() + b"".join(bytes_field(_INITIALIZER, data) for data in small)
    proto.ClearField("graph")
    nbytes = len(graph) + sum(len(head) + reference.nbytes for head, reference in heads)
    own = proto.SerializeToString()
    if len(own) + nbytes + 16 > _MAX_INLINE_BYTES:
        raise QdqPluginError("the model would have 2 GiB or more in one file: it needs external data")
    written.model.write(own + bytes_head(_GRAPH, nbytes) + graph)
    for head, reference in heads:
        written.model.write(head)
        stored.copy(reference, written.model)
