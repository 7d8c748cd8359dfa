"""Tensors that stay where they are: a type, a shape and a checked range of a file or of memory.

Format facts: ``TensorProto`` in onnx.proto (``raw_data``, ``int32_data``, ``external_data`` with its keys ``location``,
``offset`` and ``length``); sub-byte elements are packed from the low bits up, without padding between rows.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ort_qdq_plugin.errors import ModelError, SourceChangedError, SourceUnreadableError

if TYPE_CHECKING:
    from onnx import TensorProto

__all__ = [
    "ELEMENT_BITS",
    "MAX_RANK",
    "ByteSource",
    "ExternalFiles",
    "FileSource",
    "MemorySource",
    "StoredTensor",
    "shape_of",
    "stored_tensor",
    "tensor_bytes",
]

MAX_RANK = 64
"""Dimensions that a tensor may have, as many as NumPy allows: hundreds of thousands fit into a small model."""

# Of external data, as ONNX Runtime knows them.
_KEYS, _PREPACKED = ("location", "offset", "length", "checksum"), "prepacked"
_MAX_ENTRIES = 64
_MAX_LOCATION = 4096  # Linux's PATH_MAX
_MAX_DIGITS = 20  # of a 64-bit number
_MAX_SHOWN = 100  # characters of it, in an error that thousands of nodes may have

# TensorProto.DataType -> bits of an element as raw_data stores it (STRING has no fixed size).
ELEMENT_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip


class ByteSource(Protocol):
    """A container of bytes that tensors refer into: a model's file, an external data file, or memory."""

    @property
    def name(self) -> str:
        """What error messages call this source."""

    @property
    def size(self) -> int:
        """Length in bytes, as it was when the source was opened."""

    @property
    def identity(self) -> object:
        """Equal for sources whose bytes are the same ones."""

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes at `offset`; raises SourceChangedError or SourceUnreadableError."""

    def check_unchanged(self) -> None:
        """Raise SourceChangedError when the source is no longer what was opened."""

    def buffer(self) -> mmap.mmap | bytes:
        """All bytes as one read-only buffer that ONNX Runtime can borrow."""

    def close(self) -> None:
        """Give up what is open for reading; buffers that were handed out stay valid."""


# Sources in memory below this are one if their bytes are equal: the same small tensor is located anew each time.
_COMPARED_BYTES = 1 << 20


class MemorySource:
    """Bytes that the caller owns."""

    def __init__(self, data: bytes, name: str = "<model bytes>") -> None:
        self._data = data
        self.name = name
        self.size = len(data)

    @property
    def identity(self) -> object:
        return self._data if self.size < _COMPARED_BYTES else id(self)

    def read_into(self, offset: int, target: memoryview) -> None:
        target[:] = memoryview(self._data)[offset : offset + len(target)]

    def check_unchanged(self) -> None:
        return None

    def buffer(self) -> bytes:
        return self._data

    def close(self) -> None:
        return None


class FileSource:
    """A regular file, held open so that all reads see one file even when its path is replaced.

    Reads go through `pread`, never through a mapping: a file that shrinks gives an error instead of SIGBUS.
    """

    _fd = -1

    def __init__(self, path: str) -> None:
        self.name = path
        # Opening a FIFO would wait for its writer, and closing it again would end him.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ModelError(f"{path}: not a regular file")
        # It may be another file by now: O_NONBLOCK does not wait.
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        self._fd = os.open(path, flags)
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise ModelError(f"{path}: not a regular file")
        self.size = status.st_size
        self._opened_as = self._file_identity(status)
        self._mapping: mmap.mmap | None = None
        self._lock = threading.Lock()

    @property
    def identity(self) -> object:
        return id(self)

    @staticmethod
    def _file_identity(status: os.stat_result) -> tuple[int, ...]:
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def read_into(self, offset: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._fd, [target[done:]], offset + done)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                raise SourceUnreadableError(errno.EIO, f"byte {offset + done} cannot be read", self.name) from None
            if count == 0:
                raise SourceChangedError(f"{self.name}: ends at {offset + done} bytes, {len(target) - done} more expected")
            done += count

    def check_unchanged(self) -> None:
        if self._file_identity(os.fstat(self._fd)) != self._opened_as:
            raise SourceChangedError(f"{self.name}: changed while it was being loaded")

    def buffer(self) -> mmap.mmap:
        """A read-only shared mapping of the whole file, made once; it outlives the descriptor."""
        with self._lock:
            if self._mapping is None:
                try:
                    self._mapping = mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ)
                except ValueError:
                    raise SourceChangedError(f"{self.name}: has less than {self.size} bytes by now") from None
            return self._mapping

    def close(self) -> None:
        """Close the descriptor. A mapping that was handed out stays valid until it is garbage-collected."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


class ExternalFiles:
    """The external data files of one model, opened on first use under ONNX Runtime's own rules.

    A location must be relative and must resolve, symbolic links followed, into `directory`: the folder that holds the
    real model file (a model that is itself a link, as in Hugging Face's cache, may use what lies beside its target).
    """

    def __init__(self, base: str | None, directory: str | None) -> None:
        self._base = base
        self._directory = directory
        self._sources: dict[str, FileSource] = {}  # by location as given, and by path

    @classmethod
    def beside(cls, model_path: str) -> ExternalFiles:
        """Files that a model at `model_path` may name."""
        return cls(os.path.dirname(os.path.abspath(model_path)), os.path.dirname(os.path.realpath(model_path)))

    @classmethod
    def within(cls, folder: str) -> ExternalFiles:
        """Files below `folder` (``session.model_external_initializers_file_folder_path``)."""
        return cls(os.path.abspath(folder), os.path.realpath(folder))

    @classmethod
    def none(cls) -> ExternalFiles:
        """No file at all: a model given as bytes without a folder."""
        return cls(None, None)

    @property
    def opened(self) -> tuple[FileSource, ...]:
        """Those that something was found in so far, each once."""
        return tuple(dict.fromkeys(self._sources.values()))

    def open(self, location: str) -> FileSource:
        """The source for a tensor's ``location``; raises ModelError for one that ONNX Runtime would refuse."""
        source = self._sources.get(location)
        if source is None:
            path = self._resolve(location)
            source = self._sources[location] = self._sources[path] = self._sources.get(path) or FileSource(path)
        return source

    def _resolve(self, location: str) -> str:
        if self._base is None or self._directory is None:
            raise ModelError(f"external data {location[:_MAX_SHOWN]!r} of a model without a folder")
        if not location or len(location) > _MAX_LOCATION or "\0" in location or os.path.isabs(location):
            raise ModelError(f"external data location {location[:_MAX_SHOWN]!r} is not a relative path")
        # Strictly: where something is missing, thousands of components behind it need not be looked for.
        path = os.path.realpath(os.path.join(self._base, location), strict=True)
        if os.path.commonpath([path, self._directory]) != self._directory:
            raise ModelError(f"external data location {location!r} leaves the model's folder")
        return path


@dataclass(frozen=True)
class StoredTensor:
    """A constant tensor: `offset` and `nbytes` lie inside `source` and fit `data_type` and `shape` exactly."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    source: ByteSource
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def storage(self) -> tuple[object, int, int]:
        """Equal for tensors that are the same bytes in the same place."""
        return (self.source.identity, self.offset, self.nbytes)

    def read_range(self, start: int, target: np.ndarray) -> None:
        """Fill the uint8 array `target` with the bytes from `start`, counted from the tensor's first byte."""
        if start < 0 or start + target.nbytes > self.nbytes:
            raise ModelError(f"{self.name}: bytes {start}..{start + target.nbytes} of {self.nbytes} asked for")
        self.source.read_into(self.offset + start, target.reshape(-1).data)

    def read(self) -> np.ndarray:
        """All bytes, as a new uint8 array of shape [nbytes]."""
        target = np.empty(self.nbytes, np.uint8)
        self.read_range(0, target)
        return target


def tensor_bytes(data_type: int, shape: Sequence[int]) -> int:
    """Bytes that a tensor of this type and shape takes, by unbounded arithmetic; raises ModelError where it has none."""
    bits = ELEMENT_BITS.get(data_type)
    if bits is None:
        raise ModelError(f"data type {data_type} has no fixed size")
    if len(shape) > MAX_RANK:
        raise ModelError(f"{len(shape)} dimensions")
    count = 1
    for dim in shape:
        if dim < 0:
            raise ModelError(f"negative dimension {dim}")
        count *= dim
    return (count * bits + 7) // 8


def shape_of(proto: TensorProto) -> tuple[int, ...]:
    """The dimensions of `proto`; raises ModelError where they are too many."""
    if len(proto.dims) > MAX_RANK:
        raise ModelError(f"{len(proto.dims)} dimensions")
    return tuple(proto.dims)


def stored_tensor(proto: TensorProto, files: ExternalFiles, model: ByteSource, inline_location: str) -> StoredTensor:
    """Where the bytes of `proto` are; raises ModelError when they are not all there.

    `inline_location` is the location that the skeleton gives to tensors of the model file itself (`model`).
    """
    shape = shape_of(proto)
    nbytes = tensor_bytes(proto.data_type, shape)
    is_external = proto.data_location == proto.EXTERNAL
    if (is_external or proto.HasField("raw_data")) and (proto.int32_data or proto.float_data):
        raise ModelError(f"{proto.name}: values in two places")
    if is_external:
        if len(proto.external_data) > _MAX_ENTRIES:
            raise ModelError(f"{proto.name}: {len(proto.external_data)} entries of external data")
        entries = {entry.key: entry.value for entry in proto.external_data}
        unknown = [key for key in entries if key not in _KEYS and not key.startswith(_PREPACKED)]
        if unknown or len(entries) < len(proto.external_data) or not all(entries.values()):
            raise ModelError(f"{proto.name}: keys of external data that are unknown, there twice or without a value")
        location = entries.get("location", "")
        source: ByteSource = model if location == inline_location else files.open(location)
        offset = _whole_number(proto.name, "offset", entries.get("offset", "0"))
        length = _whole_number(proto.name, "length", entries.get("length", "0"))
        if length not in (0, nbytes):
            raise ModelError(f"{proto.name}: stored length {length} bytes, its shape {list(shape)} takes {nbytes}")
        if offset + nbytes > source.size:
            raise ModelError(f"{proto.name}: bytes {offset}..{offset + nbytes} of {source.name}, which has {source.size}")
        return StoredTensor(proto.name, proto.data_type, shape, source, offset, nbytes)
    data = proto.raw_data if proto.HasField("raw_data") else _typed_data(proto, nbytes)
    if len(data) != nbytes:
        raise ModelError(f"{proto.name}: {len(data)} bytes stored, its shape {list(shape)} takes {nbytes}")
    return StoredTensor(proto.name, proto.data_type, shape, MemorySource(data, proto.name), 0, nbytes)


def _whole_number(tensor: str, key: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS:
        raise ModelError(f"{tensor}: external data {key} {text[:_MAX_DIGITS]!r} is not a whole number")
    return int(text)


def _typed_data(proto: TensorProto, nbytes: int) -> bytes:
    """The `nbytes` that raw_data would hold, from ``int32_data`` or ``float_data``; ModelError for any other number."""
    bits = ELEMENT_BITS[proto.data_type]
    values = proto.float_data if proto.data_type == proto.FLOAT else proto.int32_data
    if bits > 16 and proto.data_type != proto.FLOAT:
        raise ModelError(f"{proto.name}: data type {proto.data_type} is not stored as raw bytes")
    # Sub-byte types put two or four elements into the low byte of each entry (TensorProto.int32_data).
    if len(values) * max(bits, 8) != nbytes * 8:
        raise ModelError(f"{proto.name}: {len(values)} values stored, its type and shape take {nbytes} bytes")
    if proto.data_type == proto.FLOAT:
        return np.asarray(values, "<f4").tobytes()
    return (np.asarray(values, np.int64) & ((1 << max(bits, 8)) - 1)).astype(f"<u{max(bits, 8) // 8}").tobytes()
