"""What an entry of the cache says of itself: what it was made of, and what it consists of.

The manifest is a line with a digest and a JSON object behind it. It is written last, so that an entry without one is none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from ort_qdq_plugin.report import FusedWeight, Reason, Report, UnfusedWeight
from ort_qdq_plugin.system.platform import files

__all__ = [
    "FORMAT",
    "KEY_BYTES",
    "EntryFile",
    "Identity",
    "InvalidEntry",
    "Manifest",
    "SourceFile",
    "digest_of",
    "is_key",
    "parse_manifest",
]

FORMAT = 2
"""Of entries. Whoever changes what they consist of counts it up."""

KEY_BYTES = 16
"""Of the digest that is an entry's name."""

_DIGEST_BYTES = 16


class InvalidEntry(Exception):
    """An entry cannot be used, and has to be made anew. Never leaves the cache."""


class Identity(NamedTuple):
    """A file, so that a file that was changed or replaced differs. Times are in nanoseconds."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """The identity of the file with this status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


class SourceFile(NamedTuple):
    """A file of the model itself.

    Attributes:
        path: Its real path.
        identity: What it was when the entry was made.
        names: The paths by which the model's tensors name it. They can be links, which may lead elsewhere one day.
        location: The name under which the entry's model refers to it; "" if it does not.
        linked: Whether the entry has it under that name.
        digest: Of its content, in hexadecimal; "" if content is not verified.
    """

    path: str
    identity: Identity
    names: tuple[str, ...]
    location: str
    linked: bool
    digest: str


class EntryFile(NamedTuple):
    """A file of the entry. `digest` is "" for those whose content is not verified."""

    name: str
    size: int
    digest: str


class Manifest(NamedTuple):
    """What an entry says of itself.

    Attributes:
        key: Of the entry.
        sources: The files that it was made of; the first one is the model.
        report: What was decided for the model.
        boot: The start of the system during which it was made. Until its files are known to be on disk, a crash of the
            system can lose what is in them.
        files: The files that it consists of, but for the manifest itself and links of sources. None: the model goes to stock
            ONNX Runtime.
        extensions: Whether the model has operators of onnxruntime-extensions.
        foreign: Domains of operators that only a custom-op library can have.
        prepacked_bytes: Of the pre-packed weights that it has.
    """

    key: str
    sources: tuple[SourceFile, ...]
    report: Report
    boot: str
    files: tuple[EntryFile, ...] = ()
    extensions: bool = False
    foreign: tuple[str, ...] = ()
    prepacked_bytes: int = 0

    def to_bytes(self) -> bytes:
        """The manifest as it is stored."""
        plain = {**self._asdict(), "format": FORMAT, "report": self.report.to_dict()}
        # By name: sentences may change from one version to the next.
        plain["report"]["unfused"] = [{**entry._asdict(), "reason": entry.reason.name} for entry in self.report.unfused]
        body = json.dumps(plain, separators=(",", ":")).encode()
        return digest_of(body).encode() + b"\n" + body


def parse_manifest(data: bytes) -> Manifest:
    """The manifest that is stored as `data`.

    Raises:
        InvalidEntry: It is damaged, or of another format.
    """
    digest, _, body = data.partition(b"\n")
    if digest != digest_of(body).encode():
        raise InvalidEntry("its manifest is damaged")
    try:
        return _manifest(json.loads(body))
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise InvalidEntry(f"its manifest cannot be read: {problem!r}") from problem


def _manifest(plain: Mapping[str, Any]) -> Manifest:
    if plain["format"] != FORMAT:
        raise InvalidEntry(f"it is of format {plain['format']}")
    return Manifest(
        key=plain["key"],
        sources=tuple(
            SourceFile(path, Identity(*identity), tuple(names), *rest) for path, identity, names, *rest in plain["sources"]
        ),
        files=tuple(EntryFile(*entry) for entry in plain["files"]),
        report=_report(plain["report"]),
        extensions=plain["extensions"],
        foreign=tuple(plain["foreign"]),
        prepacked_bytes=plain["prepacked_bytes"],
        boot=plain["boot"],
    )


def is_key(name: str) -> bool:
    """Whether an entry can have this name: whatever else is in the directory is somebody else's."""
    return len(name) == 2 * KEY_BYTES and set(name) <= set("0123456789abcdef")


def digest_of(content: bytes | files.File) -> str:
    """The digest of some bytes, or of a whole file; in hexadecimal."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for chunk in [content] if isinstance(content, bytes) else files.chunks(content):
        digest.update(chunk)
    return digest.hexdigest()


def _report(plain: Mapping[str, Any]) -> Report:
    fused = tuple(FusedWeight(**entry) for entry in plain["fused"])
    unfused = tuple(
        UnfusedWeight(**{**entry, "reason": Reason[entry["reason"]], "shape": tuple(entry["shape"])})
        for entry in plain["unfused"]
    )
    return Report(**{**plain, "fused": fused, "unfused": unfused, "seconds": {}})
