"""Writing entries: what they have of the model's own files, and what is left of one that is not completed."""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ort_qdq_plugin import Report, StockReason
from ort_qdq_plugin.cache.manifest import Identity, Manifest, digest_of
from ort_qdq_plugin.cache.store import MODEL, SHARED_MODEL, Store
from ort_qdq_plugin.cache.writer import EntryWriter
from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.model.sources import ExternalFiles, FileSource
from ort_qdq_plugin.system.platform import host
from tests.cache.support import KEY, PACKED, leftovers

REPORT = Report("borrowed", packed_bytes=100)
LINKED = "data-0"
SIZE = 10_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "cache"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.data"
    path.write_bytes(bytes(range(256)) * 10)
    os.utime(path, (0, 0))
    return path


def writer_of(store: Store, *, verify: bool = False, share: bool = False) -> EntryWriter:
    return EntryWriter(store, KEY, verify=verify, share=share)


def commit(writer: EntryWriter, *sources: FileSource, **locations: str) -> None:
    """Complete an entry. Locations: of what is used in place, by the stem of its file's name."""
    writer.commit(
        b"the rewritten model",
        sources,
        {source.name: locations[Path(source.name).stem] for source in sources if Path(source.name).stem in locations},
        report=REPORT,
        extensions=True,
        foreign=["some.domain"],
    )


def found_manifest(store: Store, *, verify: bool = False) -> Manifest | None:
    """What the entry says of itself, if it can be used."""
    found = store.find(KEY, verify=verify)
    return None if found is None else found.manifest


def test_buffers_are_files_of_the_entry(store: Store, weights: Path) -> None:
    writer = writer_of(store)
    first, second = writer.make_buffers([SIZE, 2 * SIZE])
    assert (first.array.size, second.array.size) == (SIZE, 2 * SIZE)
    assert not first.array.any()
    data = np.arange(SIZE).astype(np.uint8)
    first.write(0, data)
    assert store.find(KEY, verify=False) is None
    commit(writer, FileSource(str(weights)))
    entry = Path(store.path_of(KEY))
    assert (entry / PACKED).read_bytes() == data.tobytes()
    assert (entry / "packed-1.bin").stat().st_size == 2 * SIZE
    assert (entry / MODEL).read_bytes() == b"the rewritten model"
    assert {stat.S_IMODE(path.stat().st_mode) for path in entry.iterdir()} == {0o400}


@pytest.mark.parametrize("verify", [False, True])
def test_what_the_manifest_says(store: Store, weights: Path, tmp_path: Path, verify: bool) -> None:
    (tmp_path / "link.data").symlink_to(weights)
    files = ExternalFiles.within(str(tmp_path))
    sources = FileSource(str(tmp_path / "link.data")), files.open("link.data")
    writer = writer_of(store, verify=verify)
    writer.make_buffers([SIZE])
    commit(writer, *sources)
    manifest = found_manifest(store, verify=verify)
    assert manifest is not None
    assert writer.committed
    assert (manifest.key, manifest.report, manifest.boot) == (KEY, REPORT, host.boot_id())
    assert (manifest.extensions, manifest.foreign, manifest.prepacked_bytes) == (True, ("some.domain",), 0)
    assert [file.name for file in manifest.files] == [MODEL, PACKED]
    assert [bool(file.digest) for file in manifest.files] == [True, verify]
    for source in manifest.sources:
        assert (source.path, source.identity) == (str(weights.resolve()), Identity.of(weights.stat()))
        assert (source.location, source.linked) == ("", False)
        assert source.digest == (digest_of(weights.read_bytes()) if verify else "")
    assert [source.names for source in manifest.sources] == [(), (str(tmp_path / "link.data"),)]


def test_what_is_used_in_place_is_linked(store: Store, weights: Path) -> None:
    writer = writer_of(store)
    commit(writer, FileSource(str(weights)), weights=LINKED)
    assert os.path.samefile(weights, Path(store.path_of(KEY), LINKED))
    manifest = found_manifest(store)
    assert manifest is not None
    assert (manifest.sources[0].location, manifest.sources[0].linked) == (LINKED, True)
    assert LINKED not in [file.name for file in manifest.files]


@pytest.mark.parametrize("problem", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_what_cannot_be_linked_is_used_where_it_is(
    store: Store, weights: Path, problem: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr(os, "link", refuse)
    commit(writer_of(store), FileSource(str(weights)), weights=LINKED)
    manifest = found_manifest(store)
    assert manifest is not None
    assert (manifest.sources[0].location, manifest.sources[0].linked) == (LINKED, False)
    assert not Path(store.path_of(KEY), LINKED).exists()


def test_links_are_made_once(store: Store, weights: Path) -> None:
    """Making them changes the file's times, by which other entries know it."""
    commit(writer_of(store), FileSource(str(weights)), weights=LINKED)
    before = weights.stat()
    commit(writer_of(store), FileSource(str(weights)), weights=LINKED)
    assert weights.stat().st_ctime_ns == before.st_ctime_ns
    assert found_manifest(store) is not None


def test_a_link_of_what_the_file_was_is_replaced(store: Store, weights: Path) -> None:
    commit(writer_of(store), FileSource(str(weights)), weights=LINKED)
    replaced(weights)
    commit(writer_of(store), FileSource(str(weights)), weights=LINKED)
    assert os.path.samefile(weights, Path(store.path_of(KEY), LINKED))
    assert found_manifest(store) is not None


@pytest.mark.parametrize("locations", [{}, {"weights": "data-1"}])
def test_links_that_are_not_wanted_any_more_go(store: Store, weights: Path, locations: dict[str, str]) -> None:
    commit(writer_of(store), FileSource(str(weights)), weights=LINKED)
    commit(writer_of(store), FileSource(str(weights)), **locations)
    assert not Path(store.path_of(KEY), LINKED).exists()
    # That has changed one of the file's times, so that the entry has to be made once more.
    commit(writer_of(store), FileSource(str(weights)), **locations)
    assert found_manifest(store) is not None


# ---- sources that change


def rewritten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def replaced(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    os.utime(path.with_suffix(".new"), (0, 0))
    os.replace(path.with_suffix(".new"), path)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"0")
    os.utime(path, (0, 0))


@pytest.mark.parametrize("change", [rewritten, replaced, longer])
@pytest.mark.parametrize("locations", [{}, {"weights": LINKED}])
def test_a_source_that_changes_is_not_written_of(
    store: Store, weights: Path, change: Callable[[Path], None], locations: dict[str, str]
) -> None:
    source, writer = FileSource(str(weights)), writer_of(store)
    writer.make_buffers([SIZE])
    change(weights)
    with pytest.raises(SourceChangedError, match=str(weights)):
        commit(writer, source, **locations)
    assert not writer.committed
    writer.abandon()
    assert not os.listdir(store.folder)


# ---- what is not completed


def test_nothing_is_begun_before_there_is_something_to_write(store: Store) -> None:
    writer_of(store).abandon()
    assert not os.listdir(store.folder)


def test_what_is_abandoned_is_removed(store: Store, weights: Path) -> None:
    writer = writer_of(store)
    writer.make_buffers([SIZE])
    assert len(leftovers(Path(store.folder))) == 1
    writer.abandon()
    assert not os.listdir(store.folder)


def test_what_is_completed_stays(store: Store, weights: Path) -> None:
    writer = writer_of(store)
    commit(writer, FileSource(str(weights)))
    writer.abandon()
    assert found_manifest(store) is not None


def test_no_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    writer = writer_of(store)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        writer.make_buffers([SIZE])
    writer.abandon()
    assert not os.listdir(store.folder)


def test_that_there_is_nothing_to_do_is_an_entry_too(store: Store, weights: Path) -> None:
    writer = writer_of(store)
    writer.commit_nothing([FileSource(str(weights))], Report("stock", StockReason.NOT_FUSIBLE, "a detail"))
    manifest = found_manifest(store)
    assert manifest is not None
    assert writer.committed
    assert (manifest.files, manifest.report) == ((), Report("stock", StockReason.NOT_FUSIBLE, "a detail"))
    rewritten(weights)
    assert found_manifest(store) is None


# ---- pre-packed weights


def with_helper(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Have this shell script run in place of the helper process; "$3" is the entry's folder."""
    path = folder / "helper"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))


def test_a_helper_completes_the_entry(store: Store, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"""
    stat --format=%a "$3"/{PACKED} > "{tmp_path}/mode"
    env > "{tmp_path}/environment"
    echo shared > "$3"/{SHARED_MODEL}
    printf more >> "$3"/{PACKED}
    echo a message
    echo 4321
    """
    with_helper(monkeypatch, tmp_path, script)
    monkeypatch.setenv("ORT_QDQ_PLUGIN", "1")
    monkeypatch.setenv("PYTHONPATH", "/some/path")
    writer = writer_of(store, share=True)
    writer.make_buffers([SIZE])
    commit(writer, FileSource(str(weights)), weights=LINKED)
    manifest = found_manifest(store)
    assert manifest is not None
    assert manifest.prepacked_bytes == 4321
    assert {file.name: file.size for file in manifest.files} == {MODEL: 19, SHARED_MODEL: 7, PACKED: SIZE + 4}
    assert (tmp_path / "mode").read_text() == "600\n"
    own = [path for path in Path(store.path_of(KEY)).iterdir() if path.name != LINKED]
    assert {stat.S_IMODE(path.stat().st_mode) for path in own} == {0o400}
    environment = (tmp_path / "environment").read_text().splitlines()
    assert not [line for line in environment if line.startswith("ORT_QDQ_PLUGIN")]
    (paths,) = (line for line in environment if line.startswith("PYTHONPATH="))
    assert paths.endswith(":/some/path")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo first >&2; echo the problem >&2; exit 1", "the problem"),
        ("exit 3", "exit status 3"),
        ("exit 0", "index"),
        ("echo no number", "number"),
    ],
)
def test_a_helper_that_fails_costs_only_the_sharing(
    store: Store, weights: Path, tmp_path: Path, script: str, told: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with_helper(monkeypatch, tmp_path, script)
    with caplog.at_level(logging.WARNING):
        commit(writer_of(store, share=True), FileSource(str(weights)))
    (record,) = caplog.records
    assert told in record.message
    manifest = found_manifest(store)
    assert manifest is not None
    assert manifest.prepacked_bytes == 0


def test_a_helper_that_cannot_be_started(
    store: Store, weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/interpreter")
    commit(writer_of(store, share=True), FileSource(str(weights)))
    assert "/no/such/interpreter" in caplog.text
    assert found_manifest(store) is not None
