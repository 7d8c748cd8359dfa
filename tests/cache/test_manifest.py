"""Manifests: they come back as they were stored, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ort_qdq_plugin import Reason, Report, StockReason
from ort_qdq_plugin.cache.manifest import (
    FORMAT,
    EntryFile,
    Identity,
    InvalidEntry,
    Manifest,
    SourceFile,
    digest_of,
    parse_manifest,
)
from ort_qdq_plugin.report import FusedWeight, UnfusedWeight
from ort_qdq_plugin.system.platform import files

FUSION = FusedWeight("p", "d", "MatMul", 128, 64, 4, 32, "K-major", 1, 2, 3, False)
UNFUSED = UnfusedWeight("d2", "w2", Reason.GATHER, (4, 5), 6, 7, 8, 9)
SOURCE = SourceFile("/models/m.onnx", Identity(1, 2, 3, 4, 5), ("/models/link",), "data-0", True, "ab")
MANIFEST = Manifest(
    key="key",
    sources=(SOURCE, SOURCE._replace(names=(), location="", linked=False, digest="")),
    files=(EntryFile("model.onnx", 100, "cd"), EntryFile("packed-0.bin", 1 << 40, "")),
    report=Report("borrowed", None, "", (FUSION,), (UNFUSED,), 10, 20, "made", 30),
    extensions=True,
    foreign=("some.domain",),
    prepacked_bytes=7,
    boot="this one",
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=6),
    max_leaves=12,
)
texts = st.text()
counts = st.integers(0, 1 << 63)
paths = st.binary(max_size=20).map(os.fsdecode)
manifests = st.builds(
    Manifest,
    texts,
    st.lists(
        st.builds(
            SourceFile,
            paths,
            st.builds(Identity, *[counts] * 5),
            st.lists(paths, max_size=2).map(tuple),
            texts,
            st.booleans(),
            texts,
        ),
        max_size=3,
    ).map(tuple),
    st.builds(
        Report,
        texts,
        st.none() | st.sampled_from(StockReason),
        texts,
        st.just((FUSION, dataclasses.replace(FUSION, has_bias=True))),
        st.lists(
            st.builds(UnfusedWeight, texts, texts, st.sampled_from(Reason), st.just((3, 4)), counts, counts, counts, counts),
            max_size=3,
        ).map(tuple),
        counts,
        counts,
        st.just(""),
        counts,
        st.just({}),
    ),
    texts,
    st.lists(st.builds(EntryFile, texts, counts, texts), max_size=3).map(tuple),
    st.booleans(),
    st.lists(texts, max_size=2).map(tuple),
    counts,
)


def plain() -> dict[str, Any]:
    """The JSON object of a stored manifest."""
    fields: dict[str, Any] = json.loads(MANIFEST.to_bytes().partition(b"\n")[2])
    return fields


def sealed(value: object) -> bytes:
    """A value as JSON, with the digest that belongs to it."""
    body = json.dumps(value).encode()
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode() + b"\n" + body


@given(manifests)
@example(MANIFEST)
def test_a_manifest_comes_back_as_it_was_stored(manifest: Manifest) -> None:
    assert parse_manifest(manifest.to_bytes()) == manifest


def test_seconds_are_those_of_each_load() -> None:
    timed = MANIFEST._replace(report=dataclasses.replace(MANIFEST.report, seconds={"pack": 1.0}))
    assert parse_manifest(timed.to_bytes()).report.seconds == {}


@given(st.binary())
@example(b"")
@example(b"\n{}")
def test_other_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(InvalidEntry):
        parse_manifest(data)


@given(st.integers(0, len(MANIFEST.to_bytes()) - 1), st.integers(1, 255))
def test_no_byte_can_change(at: int, difference: int) -> None:
    data = bytearray(MANIFEST.to_bytes())
    data[at] ^= difference
    with pytest.raises(InvalidEntry, match="damaged"):
        parse_manifest(bytes(data))


@given(st.integers(0, len(MANIFEST.to_bytes()) - 1))
def test_no_byte_can_be_missing(length: int) -> None:
    with pytest.raises(InvalidEntry, match="damaged"):
        parse_manifest(MANIFEST.to_bytes()[:length])


@given(json_values)
@example([FORMAT])
@example({"format": FORMAT})
@example("format")
def test_other_json_is_no_manifest(value: object) -> None:
    with pytest.raises(InvalidEntry):
        parse_manifest(sealed(value))


def test_json_that_is_nested_too_deeply() -> None:
    body = b"[" * 100_000
    with pytest.raises(InvalidEntry):
        parse_manifest(digest_of(body).encode() + b"\n" + body)


@pytest.mark.parametrize("field", [*plain()])
def test_no_field_can_be_missing(field: str) -> None:
    fields = plain()
    del fields[field]
    with pytest.raises(InvalidEntry, match=field):
        parse_manifest(sealed(fields))


@given(st.sampled_from([*plain()]), json_values)
def test_a_field_of_another_kind_is_refused_or_kept(field: str, value: object) -> None:
    """What a manifest says is checked against the files; only its form is checked when it is read."""
    try:
        parsed = parse_manifest(sealed({**plain(), field: value}))
    except InvalidEntry:
        return
    assert field in ("format", *Manifest._fields)
    assert isinstance(parsed.report, Report)
    assert all(isinstance(source.identity, Identity) for source in parsed.sources)
    assert all(isinstance(file, EntryFile) for file in parsed.files)


def removed(fields: dict[str, Any], *steps: Any) -> None:
    *way, last = steps
    for step in way:
        fields = fields[step]
    del fields[last]


def replaced(value: object, *steps: Any) -> Callable[[dict[str, Any]], None]:
    def replace(fields: dict[str, Any]) -> None:
        *way, last = steps
        inner: Any = fields
        for step in way:
            inner = inner[step]
        inner[last] = value

    return replace


@pytest.mark.parametrize(
    "change",
    [
        replaced(FORMAT + 1, "format"),
        replaced(None, "sources"),
        replaced(["path"], "sources", 0),
        replaced([1, 2, 3, 4], "sources", 0, 1),
        replaced([1, 2, 3, 4, 5, 6], "sources", 0, 1),
        replaced(None, "sources", 0, 1),
        replaced(None, "sources", 0, 2),
        lambda fields: removed(fields, "sources", 0, -1),
        lambda fields: fields["sources"][0].append("more"),
        replaced({}, "files", 0, slice(None)),
        lambda fields: removed(fields, "files", 0, -1),
        lambda fields: fields["files"][0].append("more"),
        replaced(7, "files"),
        replaced([], "report"),
        lambda fields: removed(fields, "report", "route"),
        lambda fields: removed(fields, "report", "stock_reason"),
        replaced("NO_SUCH_REASON", "report", "stock_reason"),
        replaced(str(StockReason.NOT_FUSIBLE), "report", "stock_reason"),
        replaced(1, "report", "unknown"),
        replaced(1, "report", "fused"),
        lambda fields: removed(fields, "report", "fused", 0, "node"),
        replaced(1, "report", "fused", 0, "unknown"),
        replaced("NO_SUCH_REASON", "report", "unfused", 0, "reason"),
        replaced(str(Reason.GATHER), "report", "unfused", 0, "reason"),
        lambda fields: removed(fields, "report", "unfused", 0, "reason"),
        replaced("text", "report", "unfused", 0),
        replaced(None, "foreign"),
    ],
)
def test_whatever_is_not_as_it_should_be_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    fields = plain()
    change(fields)
    with pytest.raises(InvalidEntry):
        parse_manifest(sealed(fields))


def test_what_digests_are_of(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "file").write_bytes(data)
    with files.open_to_read(str(tmp_path / "file")) as file:
        file.seek(1000)
        assert digest_of(file) == digest_of(data) == hashlib.blake2b(data, digest_size=16).hexdigest()
        assert file.tell() == 1000


@pytest.mark.parametrize("change", ["content", "longer", "time", "replaced", "linked"])
def test_an_identity_is_that_of_a_file_as_it_is(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    before = path.stat()
    time.sleep(0.02)  # the system's times have steps
    if change == "content":
        path.write_bytes(b"54321")
    elif change == "longer":
        path.write_bytes(b"123456")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif change == "replaced":
        (tmp_path / "other").write_bytes(b"12345")
        os.replace(tmp_path / "other", path)
    else:
        os.link(path, tmp_path / "link")
    assert Identity.of(path.stat()) != Identity.of(before)
