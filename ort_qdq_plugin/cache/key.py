"""The names of entries. The first half of one is a model's place and how it is loaded, the second half which file is there.

So a model that is replaced, or another one that has the same path in another container, has an entry of its own; and the
entries of one place can be told apart from all others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ort_qdq_plugin.system.platform import host
from ort_qdq_plugin.values import NamedTuple

try:
    # What hashlib has under this name. Importing all of hashlib takes milliseconds.
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

__all__ = ["FORMAT", "Identity", "blake2b", "entry_key", "half", "is_key", "is_of", "kind_of_processor", "place_of"]

FORMAT = 8
"""Of entries. It is one higher whenever what they consist of has changed."""

_HALF_BYTES = 8
_HALF = 2 * _HALF_BYTES  # hexadecimal digits


class Identity(NamedTuple):
    """The status of a file, by which a changed or replaced file is recognized. The time is in nanoseconds.

    The time of the last change of its status (ctime) is not in it: a backup's link of the file, or a mode that is set, is no
    change of what it contains.
    """

    size: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """The identity of the file with this status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


def entry_key(place: Iterable[object], model: Identity) -> str:
    """The name of an entry: of a model at this place, which is all that decides what its entry has but the file itself."""
    return half(place) + half(model)


def place_of(key: str) -> str:
    """The half of a name that the entries of all files at one place have in common."""
    return key[:_HALF]


def is_of(key: str, model: Identity) -> bool:
    """Whether it is the name of an entry of this file."""
    return key[_HALF:] == half(model)


def kind_of_processor() -> str:
    """A digest of what kind of processor this is: pre-packed weights fit one kind."""
    return half([host.processor()])


def is_key(name: str) -> bool:
    """Whether an entry can have this name. Everything else in the directory is left alone."""
    return len(name) == 2 * _HALF and set(name) <= set("0123456789abcdef")


def half(facts: Iterable[object]) -> str:
    """Half of a name: a digest of facts."""
    return blake2b(repr(tuple(facts)).encode(), digest_size=_HALF_BYTES).hexdigest()
