"""Writing protobuf's wire format (https://protobuf.dev/programming-guides/encoding), as far as it is needed here.

Format facts: the messages of onnx.proto, of which `small_model` writes a few fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

__all__ = ["OFFSET_DIGITS", "bytes_field", "bytes_head", "external_entries", "number_field", "small_model", "varint"]

OFFSET_DIGITS = 15
"""Digits of an offset that `external_entries` writes, with zeros in front: no file has more bytes."""

_VARINT, _LENGTH = 0, 2  # wire types
_EXTERNAL = 1  # TensorProto.DataLocation
_INTS = 7  # AttributeProto.AttributeType
_IR_VERSION, _OPSET = 8, 17
_IS_EXTERNAL = bytes((14 << 3 | _VARINT, _EXTERNAL))  # the field data_location
_FLOAT = 1  # TensorProto.DataType. The table of types is not imported for it: models that are not quantized need no other


def varint(value: int) -> bytes:
    """A whole number."""
    if value <= 0x7F:
        return value.to_bytes()  # most are
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_head(number: int, nbytes: int) -> bytes:
    """What comes before the payload of a field that is a message, a string or bytes."""
    return varint(number << 3 | _LENGTH) + varint(nbytes)


def bytes_field(number: int, payload: bytes) -> bytes:
    """A field that is a message, a string or bytes."""
    return bytes_head(number, len(payload)) + payload


def number_field(number: int, value: int) -> bytes:
    """A field that is a whole number."""
    return varint(number << 3 | _VARINT) + varint(value)


def external_entries(location: str, offset: int, length: int) -> bytes:
    """The fields of a TensorProto that make it external data. Another offset fits in place of this one (`OFFSET_DIGITS`)."""
    numbers = f"{offset:0{OFFSET_DIGITS}}".encode(), str(length).encode()
    before, between = _around_numbers(location, len(numbers[0]), len(numbers[1]))
    return b"".join((before, numbers[0], between, numbers[1], _IS_EXTERNAL))


@lru_cache(maxsize=32)  # a model has thousands of references, and one location for all that are to itself
def _around_numbers(location: str, offset_digits: int, length_digits: int) -> tuple[bytes, bytes]:
    """What comes before an offset of so many digits, and between it and the length."""
    before = bytes_field(13, bytes_field(1, b"location") + bytes_field(2, location.encode()))
    return before + _before_number(b"offset", offset_digits), _before_number(b"length", length_digits)


def _before_number(key: bytes, digits: int) -> bytes:
    """What an entry of external data has before its value."""
    pair = bytes_field(1, key) + bytes_head(2, digits)
    return bytes_head(13, len(pair) + digits) + pair


def small_model(
    op_type: str = "",
    *,
    data_type: int = _FLOAT,
    dims: Sequence[str | int] = (1,),
    perm: Sequence[int] = (),
    file: str = "",
    weight: str = "w",
) -> bytes:
    """A serialized model of one node, y = op(x), or y = op(x, weight) with a tensor of one element in `file`.

    Without an `op_type` there is no node, and x is the output too.

    Everything is of one `data_type`, x and y have the dimensions `dims`. An empty `perm` gives no such attribute.
    """
    node = (
        bytes_field(1, b"x")
        + (bytes_field(1, weight.encode()) if file else b"")
        + bytes_field(2, b"y")
        + bytes_field(4, op_type.encode())
    )
    if perm:
        ints = b"".join(number_field(8, axis) for axis in perm)
        node += bytes_field(5, bytes_field(1, b"perm") + ints + number_field(20, _INTS))
    graph = (bytes_field(1, node) if op_type else b"") + bytes_field(2, b"small")
    if file:
        tensor = number_field(1, 1) + number_field(2, data_type) + bytes_field(8, weight.encode())
        graph += bytes_field(5, tensor + external_entries(file, 0, 4))
    sizes = b"".join(
        bytes_field(1, bytes_field(2, dim.encode()) if isinstance(dim, str) else number_field(1, dim)) for dim in dims
    )
    tensor_type = number_field(1, data_type) + bytes_field(2, sizes)
    for number, name in ((11, b"x"), (12, b"y" if op_type else b"x")):
        graph += bytes_field(number, bytes_field(1, name) + bytes_field(2, bytes_field(1, tensor_type)))
    return number_field(1, _IR_VERSION) + bytes_field(7, graph) + bytes_field(8, number_field(2, _OPSET))
