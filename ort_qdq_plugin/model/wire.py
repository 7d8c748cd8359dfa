"""A serialized ONNX model without its large tensors.

The model file is walked in protobuf's wire format (https://protobuf.dev/programming-guides/encoding) and copied. Only large
``raw_data``, of initializers and of Constant nodes, is left out: in its place the copy has a reference to external data,
which says where in the file those bytes are. The walk skips weights, so its cost depends on the number of nodes alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.encoding import external_entries, varint

__all__ = [
    "LARGE_TENSOR_BYTES",
    "LENGTH",
    "VARINT",
    "Copied",
    "Field",
    "InMemory",
    "Readable",
    "WireReader",
    "fresh_location",
    "is_ort_format",
    "may_have_external_data",
    "may_hold_small_integers",
    "without_large_tensors",
]

LARGE_TENSOR_BYTES = 4096
"""A raw_data of this size or more stays where it is; smaller ones (shapes, axes, biases) are copied."""

# What one read fetches: little after a jump over a weight, more while nodes follow each other.
_WINDOW_BYTES_MIN, _WINDOW_BYTES_MAX = 1 << 12, 1 << 18
_SECRET_BYTES = 6
_MAX_DEPTH = 100  # protobuf's own limit for nested messages

# Wire types: the low three bits of a field's key. The others are the field's number.
VARINT, _FIXED64, LENGTH, _FIXED32 = 0, 1, 2, 5

# Message -> field number -> message, for the fields that can hold a large tensor (onnx.proto). Functions stay as they are:
# a body's constants cannot refer to external data.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR = "ModelProto", "GraphProto", "NodeProto", "AttributeProto", "TensorProto"
_CHILDREN: dict[str, dict[int, str]] = {
    _MODEL: {7: _GRAPH},
    _GRAPH: {1: _NODE, 5: _TENSOR},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 11: _GRAPH},
}
_MAX_KEY_BYTES = 5  # of a field's key or length; parsers refuse what is padded to more
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9 << 3 | LENGTH, 13 << 3 | LENGTH, 14 << 3 | VARINT  # fields of TensorProto
_SEGMENT = 3  # the number of another
_DEFAULT = 0  # TensorProto.DataLocation

# A TensorProto's data_type, of integers of 8 bits or less, and the key of the next field: name, raw_data, external_data or
# int32_data (onnx.proto). Serializers write fields in the order of their numbers.
_SMALL_INTEGERS = re.compile(rb"\x10[\x02\x03\x15\x16\x19\x1a][BJj*]")

# A piece of the result: a range of the source, or new bytes.
_Piece = tuple[int, int] | bytes


class Copied(NamedTuple):
    """A model without its large tensors, and what it was copied from."""

    data: bytes
    inline_location: str  # of the references
    status: os.stat_result | None  # of the file; None for bytes in memory


class Readable(Protocol):
    """What bytes are read from: the part of a `sources.ByteSource` that reading needs."""

    @property
    def name(self) -> str:
        """What error messages call it."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes at `offset`. Errors as of `sources.ByteSource`."""


def fresh_location() -> str:
    """A location for references. It is random, so that nobody can write a model that uses this name to refer into itself."""
    return os.urandom(_SECRET_BYTES).hex()


class InMemory:
    """Bytes in memory."""

    def __init__(self, data: bytes, name: str = "<model bytes>") -> None:
        self._data = data
        self.name = name
        self.size = len(data)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes at `offset`, of which there are enough."""
        target[:] = memoryview(self._data)[offset : offset + len(target)]


def without_large_tensors(source: Readable, inline_location: str) -> bytes:
    """Copy a serialized model, with references to its large tensors in place of their bytes.

    The references get the location `inline_location`. Their offset and length are the bytes' own in `source`.

    Raises:
        ModelError: The bytes are no well-formed message.
        SourceChangedError, SourceUnreadableError, OSError: They cannot be read.
    """
    data = bytearray()
    for piece in _Walk(source, inline_location).message(_MODEL, 0, source.size, 0):
        if isinstance(piece, bytes):
            data += piece
        else:
            start = len(data)
            data += bytes(piece[1] - piece[0])
            source.read_into(piece[0], memoryview(data)[start:])
    return bytes(data)


def is_ort_format(head: bytes | bytearray) -> bool:
    """Whether a file that begins so is in ORT format: a flatbuffer with its identifier behind the offset of its root."""
    return head[4:8] == b"ORTM"


def may_have_external_data(data: bytes, inline_location: str) -> bool:
    """Whether a model without its large tensors may have a tensor in another file; False is certain.

    Args:
        data: What `without_large_tensors` gives.
        inline_location: The location of its references.
    """
    return data.count(b"location") > data.count(inline_location.encode())


def may_hold_small_integers(data: bytes) -> bool:
    """Whether there may be a tensor of integers of 8 bits or less in a serialized model; False is certain."""
    return _SMALL_INTEGERS.search(data) is not None


Field = tuple[int, int, int, int]
"""Where a field starts, its key, and where its payload starts and ends."""


class WireReader:
    """Reads the fields of messages, through a window that moves over the source."""

    def __init__(self, source: Readable | bytes) -> None:
        self._source = InMemory(source) if isinstance(source, bytes) else source
        # Bytes in memory are their own window.
        self._window = source if isinstance(source, bytes) else b""
        self._window_start = 0

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message at start..end.

        Raises:
            ModelError: It is not well-formed.
            SourceChangedError, SourceUnreadableError, OSError: It cannot be read.
        """
        position = start
        while position < end:
            window, at = self._window, position - self._window_start
            if 0 <= at < len(window) - 3 and 8 <= (key := window[at]) < 0x80:
                # Nearly all have a key of one byte, and a length of up to three, or a number of up to two. Models have tens
                # of thousands of fields.
                payload, after = position + 1, end + 1
                if key & 7 == LENGTH:
                    length, payload = window[at + 1], position + 2
                    if length >= 1 << 7:
                        length, payload = length & 0x7F | window[at + 2] << 7, position + 3
                        if length >= 1 << 14:
                            length, payload = length & 0x3FFF | window[at + 3] << 14, position + 4
                    if length < 1 << 21:
                        after = payload + length
                elif key & 7 == VARINT:
                    if window[at + 1] < 0x80:
                        after = position + 2
                    elif window[at + 2] < 0x80:
                        after = position + 3
                if after <= end:
                    yield position, key, payload, after
                    position = after
                    continue
            key, payload = self._read_short(position, end)
            wire_type = key & 7
            if wire_type == LENGTH:
                length, payload = self._read_short(payload, end)
                after = payload + length
            elif wire_type == VARINT:
                after = self.varint(payload, end)[1]
            elif wire_type in (_FIXED64, _FIXED32):
                after = payload + (8 if wire_type == _FIXED64 else 4)
            else:
                raise ModelError(f"no field of a protobuf message begins at byte {position}")
            if after > end or not key >> 3:
                raise ModelError(f"a field that begins at byte {position} ends at {after}, its message at {end}")
            yield position, key, payload, after
            position = after

    def _read_short(self, position: int, end: int) -> tuple[int, int]:
        """(value, end) of a field's key or length."""
        value, after = self.varint(position, end)
        if after - position > _MAX_KEY_BYTES:
            raise ModelError(f"a key or a length of {after - position} bytes at byte {position}")
        return value, after

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """The whole number at byte `position`, and where it ends."""
        at = position - self._window_start
        if not 0 <= at <= len(self._window) - 10:
            self._move_window(position)
            at = position - self._window_start
        if position < end and self._window[at] < 0x80:
            return self._window[at], position + 1  # most are this short
        value = shift = 0
        for byte in self._window[at : at + min(10, end - position)]:
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value, position + shift // 7
        raise ModelError(f"no whole number at byte {position}")

    def _move_window(self, position: int) -> None:
        if len(self._window) == self._source.size:
            return
        jumped = not 0 <= position - self._window_start <= len(self._window)
        wanted = _WINDOW_BYTES_MIN if jumped else min(2 * len(self._window), _WINDOW_BYTES_MAX)
        window = bytearray(max(0, min(max(wanted, _WINDOW_BYTES_MIN), self._source.size - position)))
        self._source.read_into(position, memoryview(window))
        self._window, self._window_start = bytes(window), position


class _Walk(WireReader):
    def __init__(self, source: Readable, inline_location: str) -> None:
        super().__init__(source)
        self._location = inline_location

    def message(self, kind: str, start: int, end: int, depth: int) -> list[_Piece]:
        """The message at start..end with its large tensors replaced; one range if there are none."""
        if depth > _MAX_DEPTH:
            raise ModelError(f"messages nested deeper than {_MAX_DEPTH} at byte {start}")
        children = _CHILDREN[kind]
        pieces: list[_Piece] = []
        tensors, copied = 0, start
        for position, key, payload, after in self.fields(start, end):
            if after - payload < LARGE_TENSOR_BYTES and kind is not _ATTRIBUTE:
                continue
            child = children.get(key >> 3) if key & 7 == LENGTH else None
            if kind is _ATTRIBUTE and child is _TENSOR:
                tensors += 1
                if tensors > 1:
                    # Parsers merge such tensors into one, which would be half a reference and half not.
                    return [(start, end)]
            if child is not None and after - payload >= LARGE_TENSOR_BYTES:
                before = self._piece(copied, position)
                inner = self._tensor(payload, after) if child is _TENSOR else self.message(child, payload, after, depth + 1)
                if inner != [(payload, after)]:
                    pieces += [before, varint(key), varint(_length(inner)), *inner]
                    copied = after
        if copied < end or not pieces:
            pieces.append(self._piece(copied, end) if pieces else (copied, end))
        return pieces

    def _piece(self, start: int, end: int) -> _Piece:
        """A range of the source; its bytes, where they have just been read."""
        first, last = start - self._window_start, end - self._window_start
        return self._window[first:last] if first >= 0 and last <= len(self._window) else (start, end)

    def _tensor(self, start: int, end: int) -> list[_Piece]:
        """The TensorProto at start..end with a reference in place of its raw_data; one range if it has to stay as it is."""
        raw: tuple[int, int] | None = None  # where the payload starts and ends
        left_out: list[tuple[int, int]] = []  # whole fields
        for position, key, payload, after in self.fields(start, end):
            if key == _RAW_DATA:
                if raw is not None:
                    return [(start, end)]
                raw = (payload, after)
                left_out.append((position, after))
            elif key == _DATA_LOCATION:
                # Tools that had read external data write an explicit DEFAULT.
                if self.varint(payload, end)[0] != _DEFAULT:
                    return [(start, end)]
                left_out.append((position, after))
            elif key == _EXTERNAL_DATA:
                # Left over from before, and without meaning where the location is DEFAULT.
                left_out.append((position, after))
            elif key >> 3 == _SEGMENT:
                return [(start, end)]
        if raw is None or raw[1] - raw[0] < LARGE_TENSOR_BYTES:
            return [(start, end)]
        kept = [self._piece(*part) for part in _without(left_out, start, end)]
        return [*kept, external_entries(self._location, raw[0], raw[1] - raw[0])]


def _without(left_out: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """The ranges of start..end that are not in `left_out`, which is in order."""
    starts = [start, *(after for _, after in left_out)]
    ends = [*(before for before, _ in left_out), end]
    return [(first, last) for first, last in zip(starts, ends, strict=True) if first < last]


def _length(pieces: list[_Piece]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces)
