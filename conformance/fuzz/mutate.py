"""Mutations of serialized models: valid models with something in them that a malicious or a careless writer could have put
there, and what no writer writes, but a parser may be given.

Every choice is asked of a `random.Random`. Hypothesis supplies one whose choices it can replay and shrink, the
coverage-guided fuzzer one with the seed that it gives its mutators.
"""

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from conformance.fuzz.message_mutations import MESSAGE_MUTATIONS, Random
from conformance.fuzz.seeds import seed_models

__all__ = ["beside_a_model", "mutate", "mutated_models"]

_NOT_UTF8 = b"\xff\xfe"
_UNKNOWN = (b"\xa0\x1f\x01", b"\xa3\x1f\xa4\x1f", b"\xa2\x1f\x03abc", b"\xa3\x1f", b"\xa4\x1f", b"\xa1\x1f" + bytes(8))


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
    unknown = rng.choice(_UNKNOWN)
    return unknown + data if rng.random() < 0.5 else data + unknown


_BYTE_MUTATIONS = (_truncated, _flipped, _spliced, _merged, _not_utf8, _padded_varint, _unknown_fields)


def mutate(rng: Random, data: bytes) -> bytes:
    """The serialized model `data` with up to four mutations; what cannot be parsed gets those of its bytes only."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            rng.choice(MESSAGE_MUTATIONS)(rng, model)
        data = bytes(model.SerializeToString())
        changes = rng.choice((0, 0, 0, 1))
    except (DecodeError, UnicodeError, ValueError):
        changes = 1
    for _ in range(changes):
        data = rng.choice(_BYTE_MUTATIONS)(rng, data) if data else data
    return data


@st.composite
def mutated_models(draw: st.DrawFn) -> bytes:
    seed = draw(st.sampled_from(seed_models()))
    return mutate(draw(st.randoms(use_true_random=False)), seed)


@contextmanager
def beside_a_model() -> Iterator[Path]:
    """A folder with all that mutated models refer to; in memory where that can be had."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else None) as outer:
        folder = Path(outer) / "inside"
        (folder / "sub").mkdir(parents=True)
        data = random.Random(0).randbytes(1 << 14)
        (folder / "model.data").write_bytes(data)
        (Path(outer) / "outside.data").write_bytes(data)
        (folder / "link.data").symlink_to("model.data")
        (folder / "leaving.data").symlink_to("../outside.data")
        (folder / "zero").symlink_to("/dev/zero")
        os.mkfifo(folder / "fifo")
        yield folder
