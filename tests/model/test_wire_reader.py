"""The fields of a message, against a reader that is as simple as it can be: fast paths and windows change nothing."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model import wire
from ort_qdq_plugin.model.sources import MemorySource
from ort_qdq_plugin.model.wire import Field, WireReader
from tests.support import varint

# Where lengths get one byte more.
SIZES = st.integers(0, 9) | st.sampled_from([126, 127, 128, 129, 16383, 16384, 16385, (1 << 21) - 1, 1 << 21])
# Of one byte, of two and more, of each wire type, and what is none.
KEYS = [10, 18, 26, 34, 8, 10, 13, 9, 114, 122, 127, 128, 130, 2, 0, 11, 15 << 3 | 2, 16 << 3 | 2, 1 << 20 | 2, 1 << 40 | 2]


def plain_number(data: bytes, at: int, end: int, most: int = 10) -> tuple[int, int]:
    value = 0
    for place in range(most):
        if at + place >= end:
            break
        value += (data[at + place] % 128) * 128**place
        if data[at + place] < 128:
            return value, at + place + 1
    raise ValueError


def plain_fields(data: bytes, at: int, end: int) -> Iterator[Field]:
    """As the specification has it, byte by byte; ValueError where a message is not well-formed."""
    while at < end:
        start = at
        key, payload = plain_number(data, at, end, 5)
        if key % 8 == 2:
            length, payload = plain_number(data, payload, end, 5)
            at = payload + length
        elif key % 8 == 0:
            at = plain_number(data, payload, end)[1]
        elif key % 8 in (1, 5):
            at = payload + {1: 8, 5: 4}[key % 8]
        else:
            raise ValueError
        if at > end or key < 8:
            raise ValueError
        yield start, key, payload, at


def read(fields: Iterator[Field]) -> list[Field | str]:
    """The fields, and whether there is an error behind them."""
    found: list[Field | str] = []
    try:
        found.extend(fields)
    except (ModelError, ValueError):
        found.append("not well-formed")
    return found


@st.composite
def padded(draw: st.DrawFn, value: int) -> bytes:
    """A number, perhaps with more digits than it needs."""
    number = bytearray(varint(value))
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3, 5]))):
        number[-1] |= 128
        number.append(0)
    return bytes(number)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    data = bytearray()
    for _ in range(draw(st.integers(1, 9))):
        key = draw(st.sampled_from(KEYS))
        data += draw(padded(key))
        if key % 8 == 2:
            size = draw(SIZES)
            data += draw(padded(size)) + bytes(size)
        else:
            data += draw(padded(draw(SIZES))) if key % 8 == 0 else bytes(8 if key % 8 == 1 else 4)
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, min(len(data), 64) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@settings(max_examples=500, deadline=None)
@given(messages() | st.binary(max_size=60), st.integers(0, 3), st.integers(-3, 3), st.sampled_from([10, 11, 12, 13, 16, 64]))
def test_fields_are_those_of_a_plain_reader(message: bytes, start: int, cut: int, window: int) -> None:
    """A message in the midst of others, cut off or too long, through windows that end anywhere in it."""
    data = b"\x08" * start + message + b"\x0a\x01\x02"
    end = max(start, min(len(data), start + len(message) + cut))
    expected = read(plain_fields(data, start, end))
    assert read(WireReader(data).fields(start, end)) == expected
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(wire, "_WINDOW_BYTES_MIN", window)
        patched.setattr(wire, "_WINDOW_BYTES_MAX", window * 2)
        assert read(WireReader(MemorySource(data)).fields(start, end)) == expected
