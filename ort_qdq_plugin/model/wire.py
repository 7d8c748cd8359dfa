"""A serialized ONNX model without its large tensors.

The model file is walked in protobuf's wire format (https://protobuf.dev/programming-guides/encoding) and copied. Only large
``raw_data``, of initializers and of Constant nodes, is left out: in its place the copy has a reference to external data,
which says where in the file those bytes are. The walk skips weights, so its cost depends on the number of nodes alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.encoding import external_entries, varint
from ort_qdq_plugin.values import NamedTuple

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
    "left_out_bytes",
    "may_have_external_data",
    "may_hold_small_integers",
    "without_large_tensors",
]

LARGE_TENSOR_BYTES = 4096
"""A raw_data of this size or more stays where it is; smaller ones (shapes, axes, biases) are copied."""

# What one read fetches: little after a jump over a weight, more while nodes follow each other.
_WINDOW_BYTES_MIN, _WINDOW_BYTES_MAX = 1 << 12, 1 << 16
_SECRET_BYTES = 6
_REFERENCE_BYTES = 128  # at the most, with what it makes the lengths before it longer
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
    places: Sequence[Any] | None = None  # where its large tensors are (`places.places`), if somebody has looked


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
    walk = _Walk(source, inline_location)
    walk.message(_MODEL, 0, source.size, 0)
    return b"".join(piece if isinstance(piece, bytes) else _read(source, *piece) for piece in walk.finished())


def _read(source: Readable, start: int, end: int) -> bytearray:
    data = bytearray(end - start)
    source.read_into(start, memoryview(data))
    return data


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


def left_out_bytes(size: int, data: bytes, inline_location: str) -> int:
    """At most so many bytes of large tensors, and hardly fewer, were left out of a model that had this size. Arguments as
    above."""
    return size - len(data) + _REFERENCE_BYTES * data.count(inline_location.encode())


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
        self._window: bytes | bytearray = source if isinstance(source, bytes) else b""
        self._window_start = 0

    def fields(self, start: int, end: int, least: int = 0) -> Iterator[Field]:
        """The fields of the message at start..end, but those whose payload has less than `least` bytes.

        Raises:
            ModelError: It is not well-formed.
            SourceChangedError, SourceUnreadableError, OSError: It cannot be read.
        """
        position = start
        while position < end:
            self._move_window(position)
            window, first = self._window, self._window_start
            at, stop = position - first, min(end - first, len(window) - 3)
            # Nearly all have a key of one byte, and a length of up to three, or a number of up to two. Models have tens of
            # thousands of fields.
            while at < stop and 8 <= (key := window[at]) < 0x80:
                payload, after, wire_type = at + 1, -1, key & 7
                if wire_type == LENGTH:
                    length, payload = window[at + 1], at + 2
                    if length >= 1 << 7:
                        length, payload = length & 0x7F | window[at + 2] << 7, at + 3
                        if length >= 1 << 14:
                            length, payload = length & 0x3FFF | window[at + 3] << 14, at + 4
                    if length < 1 << 21:
                        after = payload + length
                elif wire_type == VARINT:
                    if window[payload] < 0x80:
                        after = at + 2
                    elif window[at + 2] < 0x80:
                        after = at + 3
                if not at < after <= end - first:
                    break
                if after - payload >= least:
                    yield first + at, key, first + payload, first + after
                at = after
            position = first + at
            if position >= end or self._move_window(position):
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
            if after - payload >= least:
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

    def _move_window(self, position: int) -> bool:
        """Move it to this byte, unless the longest number that may begin there is in it; whether it was moved."""
        at, left = position - self._window_start, self._source.size - self._window_start - len(self._window)
        if at >= 0 and (at <= len(self._window) - 10 or not left):
            return False
        jumped = not 0 <= at <= len(self._window)
        wanted = _WINDOW_BYTES_MIN if jumped else min(2 * len(self._window), _WINDOW_BYTES_MAX)
        window = bytearray(max(0, min(max(wanted, _WINDOW_BYTES_MIN), self._source.size - position)))
        self._source.read_into(position, memoryview(window))
        self._window, self._window_start = window, position
        return True


class _Walk(WireReader):
    """Makes the pieces of the copy."""

    def __init__(self, source: Readable, inline_location: str) -> None:
        super().__init__(source)
        self._location = inline_location
        self._pieces: list[_Piece] = []
        self._done = 0  # the pieces are of what is before this byte

    def finished(self) -> list[_Piece]:
        """The pieces of the whole source."""
        self._keep_until(self._source.size)
        return self._pieces

    def message(self, kind: str, start: int, end: int, depth: int) -> int:
        """Replace the large tensors in the message at start..end. By how many bytes that makes it shorter."""
        if depth > _MAX_DEPTH:
            raise ModelError(f"messages nested deeper than {_MAX_DEPTH} at byte {start}")
        children, before, done = _CHILDREN[kind], len(self._pieces), self._done
        shorter = tensors = 0
        for position, key, payload, after in self.fields(start, end, 0 if kind is _ATTRIBUTE else LARGE_TENSOR_BYTES):
            child = children.get(key >> 3) if key & 7 == LENGTH else None
            if kind is _ATTRIBUTE and child is _TENSOR:
                tensors += 1
                if tensors > 1:
                    # Parsers merge such tensors into one, which would be half a reference and half not.
                    self._forget(before, done)
                    return 0
            if child is not None and after - payload >= LARGE_TENSOR_BYTES:
                shorter += self._child(child, (position, key, payload, after), depth + 1)
        return shorter

    def _child(self, kind: str, field: Field, depth: int) -> int:
        """Replace the large tensors in a field, whose own length is before them. By how many bytes it becomes shorter."""
        position, key, start, end = field
        before, done = len(self._pieces), self._done
        self._keep_until(position)
        self._done = start
        head = len(self._pieces)
        self._pieces.append(b"")
        shorter = self._tensor(start, end) if kind is _TENSOR else self.message(kind, start, end, depth)
        if not shorter:
            self._forget(before, done)
            return 0
        self._pieces[head] = written = varint(key) + varint(end - start - shorter)
        return shorter + start - position - len(written)

    def _keep_until(self, end: int) -> None:
        """Add what follows as it is: as bytes, where they have just been read."""
        start = self._done
        if start < end:
            first, last = start - self._window_start, end - self._window_start
            is_read = first >= 0 and last <= len(self._window)
            self._pieces.append(bytes(self._window[first:last]) if is_read else (start, end))
        self._done = end

    def _forget(self, count: int, done: int) -> None:
        """Take back all pieces but the first ones, which are of what is before byte `done`."""
        del self._pieces[count:]
        self._done = done

    def _tensor(self, start: int, end: int) -> int:
        """Put a reference in place of a TensorProto's raw_data. As `message`; 0 if it stays as it is."""
        raw: tuple[int, int] | None = None  # where the payload starts and ends
        left_out: list[tuple[int, int]] = []  # whole fields
        for position, key, payload, after in self.fields(start, end):
            if key == _RAW_DATA:
                if raw is not None:
                    return 0
                raw = (payload, after)
                left_out.append((position, after))
            elif key == _DATA_LOCATION:
                # Tools that had read external data write an explicit DEFAULT.
                if self.varint(payload, end)[0] != _DEFAULT:
                    return 0
                left_out.append((position, after))
            elif key == _EXTERNAL_DATA:
                # Left over from before, and without meaning where the location is DEFAULT.
                left_out.append((position, after))
            elif key >> 3 == _SEGMENT:
                return 0
        if raw is None or raw[1] - raw[0] < LARGE_TENSOR_BYTES:
            return 0
        for before, after in left_out:
            self._keep_until(before)
            self._done = after
        self._keep_until(end)
        entries = external_entries(self._location, raw[0], raw[1] - raw[0])
        self._pieces.append(entries)
        return sum(after - before for before, after in left_out) - len(entries)
