"""Manifests: they come back as they were stored, and nothing else is taken for one."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ort_qdq_plugin import Reason, Report, StockReason
from ort_qdq_plugin.cache.key import FORMAT, Identity
from ort_qdq_plugin.cache.manifest import MAX_BYTES, EntryFile, InvalidEntry, Manifest, SourceFile, digest_of, parse_manifest
from ort_qdq_plugin.report import weights
from ort_qdq_plugin.report.weights import FusedWeight, UnfusedWeight
from ort_qdq_plugin.system.platform import files

FUSION = FusedWeight("p", "d", "MatMul", 128, 64, 4, 32, "K-major", 1, 2, 3, False, 4)
UNFUSED = UnfusedWeight("d2", "w2", Reason.GATHER, (4, 5), 6, 7, 8, 9)
SOURCE = SourceFile("/models/m.onnx", Identity(1, 2, 3, 4), ("/models/link",), "data-0", "ab")
MANIFEST = Manifest(
    key="key",
    sources=(SOURCE, SOURCE._replace(names=(), location="", digest="")),
    files=(EntryFile("model.onnx", 100, "cd"), EntryFile("packed-0.bin", 1 << 40, "")),
    report=Report("borrowed", None, "", (FUSION,), (UNFUSED,), 10, 20, "made", 30, 40),
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
paths = st.text(st.characters(), max_size=20)  # with surrogates: names that are no UTF-8, or no UTF-16, have them
named = st.lists(paths, max_size=2).map(tuple)
FIELDS = get_type_hints(Report, localns=vars(weights))  # `weights` is imported late in a load
manifests = st.builds(
    Manifest,
    sources=st.lists(st.builds(SourceFile, path=paths, names=named), max_size=3).map(tuple),
    report=st.builds(Report, **{**{name: st.from_type(hint) for name, hint in FIELDS.items()}, "seconds": st.just({})}),
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
    assert parse_manifest(timed.to_bytes()) == MANIFEST


@given(st.binary())
@example(b"")
@example(b"\n{}")
def test_other_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(InvalidEntry):
        parse_manifest(data)


@given(st.integers(0, len(MANIFEST.to_bytes()) - 1), st.integers(1, 255))
def test_no_byte_can_change_or_be_missing(at: int, difference: int) -> None:
    stored = MANIFEST.to_bytes()
    for data in (stored[:at] + bytes([stored[at] ^ difference]) + stored[at + 1 :], stored[:at]):
        with pytest.raises(InvalidEntry, match="damaged"):
            parse_manifest(data)


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


@pytest.mark.parametrize("part", ["[]", "{}"])
def test_a_manifest_of_too_many_parts_is_not_taken_apart(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", None)
    body = f"[{','.join([part] * (1 << 18))}]".encode()
    with pytest.raises(InvalidEntry, match="too many parts"):
        parse_manifest(digest_of(body).encode() + b"\n" + body)


def test_a_manifest_that_is_too_large_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", None)
    body = b" " * MAX_BYTES
    with pytest.raises(InvalidEntry, match=f"{MAX_BYTES + 33} bytes"):
        parse_manifest(digest_of(body).encode() + b"\n" + body)


@pytest.mark.parametrize("field", [*plain()])
def test_no_field_can_be_missing(field: str) -> None:
    with pytest.raises(InvalidEntry, match=field):
        parse_manifest(sealed(changed(GONE, field)))


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


GONE = object()


def changed(value: object, *way: Any) -> dict[str, Any]:
    """The stored fields with another value at the end of this way, or none."""
    fields: Any = plain()
    inner = fields
    for step in way[:-1]:
        inner = inner[step]
    if value is GONE:
        del inner[way[-1]]
    else:
        inner[way[-1]] = value
    return fields  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("value", "way"),
    [
        (FORMAT + 1, ["format"]), (None, ["sources"]), (["path"], ["sources", 0]), ([1, 2, 3], ["sources", 0, 1]),
        ([1, 2, 3, 4, 5], ["sources", 0, 1]), (None, ["sources", 0, 1]), (None, ["sources", 0, 2]),
        (GONE, ["sources", 0, -1]), (["more", "and more"], ["sources", 0, slice(4, 5)]), ({}, ["files", 0, slice(None)]),
        (GONE, ["files", 0, -1]), (["more", "and more"], ["files", 0, slice(2, 3)]), (7, ["files"]), ([], ["report"]),
        (GONE, ["report", "route"]), (GONE, ["report", "stock_reason"]), ("NO_SUCH_REASON", ["report", "stock_reason"]),
        (str(StockReason.NOT_FUSIBLE), ["report", "stock_reason"]), (1, ["report", "unknown"]), (1, ["report", "fused"]),
        (GONE, ["report", "fused", 0, "node"]), (1, ["report", "fused", 0, "unknown"]),
        ("NO_SUCH_REASON", ["report", "unfused", 0, "reason"]), (str(Reason.GATHER), ["report", "unfused", 0, "reason"]),
        (GONE, ["report", "unfused", 0, "reason"]), ("text", ["report", "unfused", 0]), (None, ["foreign"]),
    ],
)  # fmt: skip
def test_whatever_is_not_as_it_should_be_is_refused(value: object, way: list[Any]) -> None:
    with pytest.raises(InvalidEntry):
        parse_manifest(sealed(changed(value, *way)))


def test_what_digests_are_of(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "file").write_bytes(data)
    with files.open_to_read(str(tmp_path / "file")) as file:
        assert file.read(1000) == data[:1000]
        assert digest_of(file) == digest_of(data) == hashlib.blake2b(data, digest_size=16).hexdigest()
        assert file.read() == data[1000:]
