"""Mutations of a serialized model: what no writer writes, but a parser may be given."""

from __future__ import annotations

from conformance.fuzz.message_mutations import Random
from conformance.fuzz.seeds import seed_models

__all__ = ["BYTE_MUTATIONS"]

_NOT_UTF8 = b"\xff\xfe"


def _truncated(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flipped(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _spliced(rng: Random, data: bytes) -> bytes:
    """A part again, or without a part."""
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 2, 16, 300)))
    return data[:end] + data[start:] if rng.random() < 0.5 else data[:start] + data[end:]


def _merged(rng: Random, data: bytes) -> bytes:
    """Parts of another model behind it: a parser merges the two graphs."""
    other = rng.choice(seed_models())
    return data + (other if rng.random() < 0.7 else data)


def _not_utf8(rng: Random, data: bytes) -> bytes:
    name = rng.choice((b"w_s", b"w_d", b"MatMul", b"axis", b"location", b"y"))
    return data.replace(name, (_NOT_UTF8 * len(name))[: len(name)], rng.choice((1, -1)))


def _padded_varint(rng: Random, data: bytes) -> bytes:
    """A number written with more bytes than it needs."""
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] | 0x80]) + b"\x80" * rng.randrange(10) + b"\0" + data[at + 1 :]


def _unknown_fields(rng: Random, data: bytes) -> bytes:
    unknown = rng.choice(
        (b"\xa0\x1f\x01", b"\xa3\x1f\xa4\x1f", b"\xa2\x1f\x03abc", b"\xa3\x1f", b"\xa4\x1f", b"\xa1\x1f" + bytes(8))
    )
    return unknown + data if rng.random() < 0.5 else data + unknown


BYTE_MUTATIONS = (_truncated, _flipped, _spliced, _merged, _not_utf8, _padded_varint, _unknown_fields)
