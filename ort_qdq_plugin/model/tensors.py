"""Tensors that stay where they are: a type, a shape and a checked range of a file or of memory.

Format facts: ``TensorProto`` in onnx.proto (``raw_data``, ``int32_data``, ``external_data`` with its keys ``location``,
``offset`` and ``length``); elements of less than a byte are packed from the low bits up, without padding between rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ort_qdq_plugin.errors import ExternalDataError, ModelError
from ort_qdq_plugin.model.elements import ELEMENTS
from ort_qdq_plugin.model.messages import TensorProto, external_data
from ort_qdq_plugin.model.sources import ByteSource, ExternalFiles, MemorySource
from ort_qdq_plugin.values import NamedTuple

__all__ = ["MAX_RANK", "Locate", "StoredTensor", "shape_of", "stored_tensor", "tensor_bytes"]

MAX_RANK = 64
"""The most dimensions of a tensor, which is NumPy's limit: hundreds of thousands fit into a small model."""

# Of external data, as ONNX Runtime knows them.
_KEYS, _PREPACKED = ("location", "offset", "length", "checksum"), "prepacked"
_MAX_ENTRIES = 64
_MAX_DIGITS = 20  # of a 64-bit number

# Fields of TensorProto that hold elements of these types where raw_data does not, and their bits; others are in int32_data.
_FIELDS = {
    "float": ("float_data", 32),
    "double": ("double_data", 64),
    "int64": ("int64_data", 64),
    "uint32": ("uint64_data", 32),
    "uint64": ("uint64_data", 64),
}


class StoredTensor(NamedTuple):
    """A constant tensor, where it is stored."""

    name: str
    data_type: int  # TensorProto.DataType
    shape: tuple[int, ...]
    source: ByteSource  # the file or the memory that holds its bytes
    offset: int  # the position of its first byte in `source`; checked against the size of `source`
    nbytes: int  # its length in bytes; exactly what `data_type` and `shape` take

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def storage(self) -> tuple[object, int, int]:
        """Equal for tensors that are the same bytes in the same place."""
        return (self.source.identity, self.offset, self.nbytes)

    @property
    def is_aligned(self) -> bool:
        """Whether the bytes are stored, from a multiple of an element's size on. ONNX Runtime copies those that do not."""
        return self.source.is_stored and self.offset % max(1, ELEMENTS[self.data_type].bits // 8) == 0

    def is_aligned_to(self, nbytes: int) -> bool:
        """Whether they start at a multiple of so many bytes, too."""
        return self.is_aligned and self.offset % nbytes == 0

    def part(self, index: int) -> StoredTensor:
        """What is at an index of the first axis. Only where each of these starts on a byte's border (`has_parts`)."""
        nbytes = self.nbytes // self.shape[0]
        return self._replace(shape=self.shape[1:], offset=self.offset + index * nbytes, nbytes=nbytes)

    @property
    def has_parts(self) -> bool:
        """Whether what is at each index of the first axis starts on a byte's border."""
        return math.prod(self.shape[1:]) * ELEMENTS[self.data_type].bits % 8 == 0

    def read_range(self, start: int, target: np.ndarray) -> None:
        """Fill the uint8 array `target` with the bytes from `start`, counted from the tensor's first byte.

        Raises:
            ModelError: The tensor has no such bytes.
            SourceChangedError, SourceUnreadableError, OSError: They cannot be read.
        """
        if start < 0 or start + target.nbytes > self.nbytes:
            raise ModelError(f"{self.name}: bytes {start}..{start + target.nbytes} of {self.nbytes} are wanted")
        self.source.read_into(self.offset + start, target.reshape(-1).data)

    def read(self) -> np.ndarray:
        """All bytes, as a new uint8 array of shape [nbytes]."""
        target = np.empty(self.nbytes, np.uint8)
        self.read_range(0, target)
        return target


Locate = Callable[["TensorProto"], StoredTensor]
"""Finds the bytes of a tensor of a model; raises ModelError where they are not all there."""


def tensor_bytes(data_type: int, shape: Sequence[int]) -> int:
    """Bytes that a tensor of this type and shape takes, by unbounded arithmetic.

    Raises:
        ModelError: The type has no fixed size, or the shape is none.
    """
    element = ELEMENTS.get(data_type)
    if element is None:
        raise ModelError(f"data type {data_type} has no fixed size")
    for dim in shape:
        if dim < 0:
            raise ModelError(f"negative dimension {dim}")
    return (math.prod(shape) * element.bits + 7) // 8


def shape_of(proto: TensorProto) -> tuple[int, ...]:
    """The dimensions of `proto`; raises ModelError for more than MAX_RANK."""
    if len(proto.dims) > MAX_RANK:
        raise ModelError(f"{len(proto.dims)} dimensions")
    return tuple(proto.dims)


def stored_tensor(proto: TensorProto, files: ExternalFiles, model: ByteSource, inline_location: str) -> StoredTensor:
    """Find the bytes of a tensor: in `model`, if its location is the skeleton's `inline_location`, in `files`, or in itself.

    Raises:
        ExternalDataError: They are not all there.
        ModelError: The tensor is not as the format has it.
    """
    shape = shape_of(proto)
    nbytes = tensor_bytes(proto.data_type, shape)
    is_external = proto.data_location == proto.EXTERNAL
    if (is_external or proto.HasField("raw_data")) and (proto.int32_data or proto.float_data):
        raise ModelError(f"{proto.name}: values in two places")
    if is_external:
        if len(proto.external_data) > _MAX_ENTRIES:
            raise ModelError(f"{proto.name}: {len(proto.external_data)} entries of external data")
        entries = external_data(proto)
        if not all(isinstance(text, str) for pair in entries.items() for text in pair):
            raise ModelError(f"{proto.name}: external data that is not UTF-8")  # protobuf gives the bytes then
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
            raise ExternalDataError(
                f"{proto.name}: external data {source.name} has {source.size} bytes, {offset + nbytes} are needed"
            )
        return StoredTensor(proto.name, proto.data_type, shape, source, offset=offset, nbytes=nbytes)
    data = proto.raw_data if proto.HasField("raw_data") else _typed_data(proto, nbytes)
    if len(data) != nbytes:
        raise ModelError(f"{proto.name}: {len(data)} bytes stored, its shape {list(shape)} takes {nbytes}")
    in_message = MemorySource(data, proto.name)
    return StoredTensor(proto.name, proto.data_type, shape, in_message, offset=0, nbytes=nbytes)


def _whole_number(tensor: str, key: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS:
        raise ModelError(f"{tensor}: external data {key} {text[:_MAX_DIGITS]!r} is not a whole number")
    return int(text)


def _typed_data(proto: TensorProto, nbytes: int) -> bytes:
    """The `nbytes` that raw_data would hold, from the field for its type; ModelError for any other number."""
    element = ELEMENTS[proto.data_type]
    field, bits = _FIELDS.get(element.name, ("int32_data", max(element.bits, 8)))
    values = getattr(proto, field)
    if element.bits > 32 and field == "int32_data":
        raise ModelError(f"{proto.name}: data type {proto.data_type} is not stored as raw bytes")
    # Sub-byte types put two or four elements into the low byte of each entry (TensorProto.int32_data).
    if len(values) * bits != nbytes * 8:
        raise ModelError(f"{proto.name}: {len(values)} values stored, its type and shape take {nbytes} bytes")
    if element.name in ("float", "double"):
        return np.asarray(values, element.numpy).tobytes()
    wide = np.asarray(values, np.uint64 if field == "uint64_data" else np.int64)
    return (wide.view(np.uint64) & np.uint64((1 << bits) - 1)).astype(f"<u{bits // 8}").tobytes()
