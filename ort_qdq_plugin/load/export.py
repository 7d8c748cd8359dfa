"""Writing a prepared model to a place of one's choice: an ordinary QOperator model that stock ONNX Runtime loads anywhere.

Weights are streamed from where they were packed or are stored. At no time are more than a few megabytes of them in memory.

Format facts: protobuf's wire format, and ONNX's ExternalData.md, by which offsets are multiples of a page.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from ort_qdq_plugin.errors import LeaveToStock, ModelError, QdqPluginError, readable
from ort_qdq_plugin.load.journal import Journal
from ort_qdq_plugin.load.journey import prepare
from ort_qdq_plugin.load.request import LoadRequest
from ort_qdq_plugin.model.encoding import bytes_field, bytes_head
from ort_qdq_plugin.model.messages import ModelProto, external_tensors, refer
from ort_qdq_plugin.options import Options
from ort_qdq_plugin.report import Report
from ort_qdq_plugin.system.platform import host

if TYPE_CHECKING:
    from onnx import TensorProto

__all__ = ["Progress", "export", "write_model"]

_COPIED_BYTES = 8 << 20  # at a time
_ALIGNMENT = 4096
_MAX_INLINE_BYTES = (1 << 31) - 1  # of a message (protobuf's documentation, "total size")
_RANDOM_BYTES = 8

# Numbers of the fields ModelProto.graph, GraphProto.initializer and TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9

Progress = Callable[[int, int], None]


def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    external_data: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    options: Options | None = None,
) -> Report:
    """Write a model with its dequantized products fused.

    Args:
        model: The path of an ONNX model.
        out: The path of the new one.
        external_data: Whether its weights go to a file of their own beside it, named like it with ".data" behind; they
            have to from 2 GiB on.
        force: Whether files that are there may be replaced.
        progress: Called with (bytes done, bytes in all), first while weights are packed, then while they are written.
        options: This package's own; accuracy level and block size count.

    Returns:
        What was fused, and what was not.

    Raises:
        FileExistsError: There is such a file already.
        QdqPluginError: There is nothing to fuse in the model, or it would have 2 GiB or more in one file.
        ModelError, OSError: It cannot be read, or the new one not be written.
    """
    path = os.fspath(out)
    data_path = f"{path}.data" if external_data else None
    for wanted in filter(None, (path, data_path)):
        if os.path.lexists(wanted) and not force:
            raise FileExistsError(17, "is there already", wanted)
    os.stat(os.path.dirname(os.path.abspath(path)))  # or it is the temporary file that cannot be found
    chosen = dataclasses.replace(options or Options(), progress=progress)
    try:
        return write_model(LoadRequest(os.fspath(model), None, chosen), path, data_path)
    except LeaveToStock as because:
        raise QdqPluginError(f"{os.fspath(model)}: {because}") from None


def write_model(request: LoadRequest, path: str, data_path: str | None) -> Report:
    """Write what is asked for to files, which get their names, whatever has them now, when they are complete.

    Args:
        request: Of its session options, accuracy level and block size count.
        path: Of the new model.
        data_path: Of the file for its weights; None for inside.

    Raises:
        LeaveToStock: There is nothing to fuse in the model.
        QdqPluginError: It would have 2 GiB or more in one file.
        ModelError, OSError: It cannot be read, or the new one not be written.
    """
    # None of the other session options may decide where weights are: no session is created.
    options = dataclasses.replace(
        request.options,
        accuracy_level=request.accuracy_level,
        block_size=request.block_size,
        cache_dir=None,
        share_weights=False,
        buffer="file",
    )
    journal = Journal()
    with ExitStack() as undo:
        try:
            prepared = prepare(request._replace(session_options=None, options=options), journal)
        except LeaveToStock as because:
            if isinstance(because.__cause__, QdqPluginError | OSError):
                raise because.__cause__ from None
            raise
        for buffer in prepared.packed:
            undo.callback(buffer.discard)
        assert isinstance(prepared.model, bytes)
        with readable():
            proto = ModelProto.FromString(prepared.model)
        written = _Written(path, data_path, undo)
        stored = _Stored(prepared.buffers)
        total = sum(stored.locate(tensor).nbytes for tensor in external_tensors(proto.graph))
        tell = options.progress or (lambda _done, _total: None)
        if data_path is None:
            _write_inline(proto, stored, written, lambda done: tell(done, total))
        else:
            _write_beside(proto, stored, written, lambda done: tell(done, total))
        written.commit()
    return prepared.report._replace(route="export")


class _Place(NamedTuple):
    """Where the bytes of a tensor are."""

    location: str
    offset: int
    nbytes: int


class _Stored:
    """The bytes that a prepared model refers to."""

    def __init__(self, buffers: Mapping[str, mmap.mmap | bytes]) -> None:
        self._buffers = dict(buffers)

    def locate(self, tensor: TensorProto) -> _Place:
        """Where a tensor's bytes are.

        Raises:
            ModelError: Nowhere.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = _Place(entries["location"], int(entries.get("offset", 0)), int(entries.get("length", 0)))
        buffer = self._buffers.get(place.location)
        if buffer is None or place.offset + place.nbytes > len(buffer):
            raise ModelError(f"{tensor.name}: its bytes are not to be found")
        return place

    def chunks(self, place: _Place) -> Iterator[bytes]:
        """A tensor's bytes, a piece at a time. Pages of files are given back."""
        buffer, end = self._buffers[place.location], place.offset + place.nbytes
        for at in range(place.offset, end, _COPIED_BYTES):
            length = min(_COPIED_BYTES, end - at)
            yield buffer[at : at + length]
            if isinstance(buffer, mmap.mmap):
                host.drop_pages(buffer, at, length)


class _Written:
    """New files under temporary names, which get their own when all is written."""

    def __init__(self, path: str, data_path: str | None, undo: ExitStack) -> None:
        self._undo = undo
        self._names: dict[str, str] = {}
        self.data = None if data_path is None else self._new(data_path)
        self.data_name = "" if data_path is None else os.path.basename(data_path)
        self.model = self._new(path)

    def _new(self, path: str) -> BinaryIO:
        name = f"{path}.{os.urandom(_RANDOM_BYTES).hex()}.tmp"
        file = self._undo.enter_context(BufferedWriter(FileIO(name, "x")))
        self._names[name] = path
        self._undo.callback(Path(name).unlink, missing_ok=True)
        return file

    def commit(self) -> None:
        """Give the files their names, the data first."""
        for file in filter(None, (self.data, self.model)):
            file.flush()
            os.fsync(file.fileno())
        for name, path in self._names.items():
            os.replace(name, path)


def _write_beside(proto: ModelProto, stored: _Stored, written: _Written, tell: Callable[[int], None]) -> None:
    """Write weights into the data file, each once, and the model with references to them."""
    assert written.data is not None
    offsets: dict[_Place, int] = {}
    done = 0
    for tensor in external_tensors(proto.graph):
        place = stored.locate(tensor)
        if place not in offsets:
            written.data.seek(-(-written.data.tell() // _ALIGNMENT) * _ALIGNMENT)
            offsets[place] = written.data.tell()
            for chunk in stored.chunks(place):
                written.data.write(chunk)
                done += len(chunk)
                tell(done)
        refer(tensor, written.data_name, offsets[place], place.nbytes)
    written.model.write(proto.SerializeToString())


def _write_inline(proto: ModelProto, stored: _Stored, written: _Written, tell: Callable[[int], None]) -> None:
    """Write the model with its weights inside: its own fields, then its graph's, then the graph's weights."""
    outside = [tensor for tensor in proto.graph.initializer if tensor.data_location == tensor.EXTERNAL]
    if len(outside) != sum(1 for _ in external_tensors(proto.graph)):
        raise ModelError("a subgraph has external data")
    small = [tensor.SerializeToString() for tensor in proto.graph.initializer if tensor.data_location != tensor.EXTERNAL]
    heads = []
    for tensor in outside:
        place = stored.locate(tensor)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        head = tensor.SerializeToString() + bytes_head(_RAW_DATA, place.nbytes)
        heads.append((bytes_head(_INITIALIZER, len(head) + place.nbytes) + head, place))
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString() + b"".join(bytes_field(_INITIALIZER, data) for data in small)
    proto.ClearField("graph")
    nbytes = len(graph) + sum(len(head) + place.nbytes for head, place in heads)
    own = proto.SerializeToString()
    if len(own) + nbytes + 16 > _MAX_INLINE_BYTES:
        raise QdqPluginError("the model would have 2 GiB or more in one file: it needs external data")
    written.model.write(own + bytes_head(_GRAPH, nbytes) + graph)
    done = 0
    for head, place in heads:
        written.model.write(head)
        for chunk in stored.chunks(place):
            written.model.write(chunk)
            done += len(chunk)
            tell(done)
