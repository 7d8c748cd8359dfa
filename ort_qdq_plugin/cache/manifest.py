"""The manifest of an entry of the cache: what the entry was made of, and what it consists of.

It is a line with a digest and a JSON object after it. It is written last, so that a folder without one is no entry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ort_qdq_plugin.cache.key import FORMAT, Identity, blake2b
from ort_qdq_plugin.report import Report, RouteReason, StockReason
from ort_qdq_plugin.report.weights import FusedWeight, Reason, UnfusedWeight
from ort_qdq_plugin.system.platform import files
from ort_qdq_plugin.values import NamedTuple

__all__ = [
    "MAX_BYTES",
    "EntryFile",
    "InvalidEntry",
    "Manifest",
    "SourceFile",
    "digest_of",
    "parse_manifest",
]

MAX_BYTES = 16 << 20
"""Of a stored manifest. That of a model with a thousand fused nodes has a third of a megabyte."""

# Objects and lists in one, which take many times as much memory as text. Each weight has two.
_MAX_PARTS = 1 << 18

_DIGEST_BYTES = 16
# Fields of a report that are such a reason, or None.
_REASONS = {"stock_reason": StockReason, "route_reason": RouteReason, "unchanged": StockReason}


class InvalidEntry(Exception):
    """An entry cannot be used, and is made anew. Never leaves the cache."""


class SourceFile(NamedTuple):
    """A file of the model itself."""

    path: str  # its real path
    identity: Identity  # of the file when the entry was made
    # The paths by which the model's tensors name it. They can be links, which may lead elsewhere later.
    names: tuple[str, ...]
    location: str  # the name by which the entry's model refers to it; "" if it does not
    digest: str  # of its content, in hexadecimal; "" if content is not verified
    samples: str = ""  # the digest of pieces of it, in a portable entry


class EntryFile(NamedTuple):
    """A file of the entry. `digest` is "" for those whose content is not verified."""

    name: str
    size: int
    digest: str


class Manifest(NamedTuple):
    """What an entry was made of, and what it consists of."""

    key: str
    sources: tuple[SourceFile, ...]  # the files that it was made of; the first one is the model
    report: Report  # what was decided for the model
    # Identifies the start of the system at which it was made. A crash of the system can lose the content of its files until
    # they are known to be on disk.
    boot: str
    # The files that it consists of, without the manifest itself. (): the model is left to stock ONNX Runtime.
    files: tuple[EntryFile, ...] = ()
    extensions: bool = False  # whether the model has operators of onnxruntime-extensions
    foreign: tuple[str, ...] = ()  # domains of operators that only a custom-op library can have
    prepacked_bytes: int = 0  # of the pre-packed weights that it has
    processor: str = ""  # what kind of processor these fit

    @property
    def is_portable(self) -> bool:
        """Whether it is that of an entry for other machines."""
        return any(source.samples for source in self.sources)

    def to_bytes(self) -> bytes:
        """The manifest as it is stored."""
        report = self.report.to_dict()
        # Reasons by name: sentences may change from one version to the next.
        for name in _REASONS:
            reason: StockReason | RouteReason | None = getattr(self.report, name)
            report[name] = reason and reason.name
        for plain, entry in zip(report["unfused"], self.report.unfused, strict=True):
            plain["reason"] = entry.reason.name
            del plain["hint"]  # follows from the reason
        fields = {**self._asdict(), "format": FORMAT, "report": report}
        body = json.dumps(fields, separators=(",", ":"), default=_text).encode()
        return digest_of(body).encode() + b"\n" + body


def parse_manifest(data: bytes) -> Manifest:
    """The manifest that is stored as `data`.

    Raises:
        InvalidEntry: It is damaged, or of another format.
    """
    digest, _, body = data.partition(b"\n")
    if digest != digest_of(body).encode():
        raise InvalidEntry("its manifest is damaged")
    if len(data) > MAX_BYTES or body.count(b"{") + body.count(b"[") > _MAX_PARTS:
        raise InvalidEntry(f"its manifest has {len(data)} bytes, or too many parts")
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
            SourceFile(path, Identity(*identity), tuple(names), location, digest, samples)
            for path, identity, names, location, digest, samples in plain["sources"]
        ),
        files=tuple(EntryFile(*entry) for entry in plain["files"]),
        report=_report(plain["report"]),
        extensions=plain["extensions"],
        foreign=tuple(plain["foreign"]),
        prepacked_bytes=plain["prepacked_bytes"],
        processor=plain["processor"],
        boot=plain["boot"],
    )


def digest_of(content: bytes | files.File) -> str:
    """The digest of some bytes, or of a whole file; in hexadecimal."""
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for chunk in [content] if isinstance(content, bytes) else files.chunks(content):
        digest.update(chunk)
    return digest.hexdigest()


def _text(name: object) -> str:
    """The text of a name that is no UTF-8, which protobuf gives as bytes."""
    return bytes(name).decode("utf-8", "backslashreplace") if isinstance(name, bytes) else repr(name)


def _report(plain: Mapping[str, Any]) -> Report:
    fused = tuple(FusedWeight(**entry) for entry in plain["fused"])
    unfused = tuple(
        UnfusedWeight(**{**entry, "reason": Reason[entry["reason"]], "shape": tuple(entry["shape"])})
        for entry in plain["unfused"]
    )
    reasons = {name: None if plain[name] is None else kind[plain[name]] for name, kind in _REASONS.items()}
    return Report(**{**plain, **reasons, "fused": fused, "unfused": unfused, "seconds": {}})
