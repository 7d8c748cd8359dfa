"""Writing entries: what they have of the model's own files, and what is left of one that is not completed."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ort_qdq_plugin import Report, StockReason
from ort_qdq_plugin.cache.manifest import Identity, Manifest, digest_of
from ort_qdq_plugin.cache.store import MODEL, SHARED_MODEL, Store
from ort_qdq_plugin.cache.writer import EntryWriter
from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.model.sources import ExternalFiles, FileSource
from ort_qdq_plugin.system.platform import host
from tests.cache.support import KEY, PACKED, leftovers, longer, replaced, rewritten
from tests.cache.test_helper import interpreter
from tests.support import refuse

REPORT = Report("borrowed", packed_bytes=100)
LINKED = "data-0"
SIZE = 10_000


def writer_of(store: Store, *, verify: bool = False, share: bool = False) -> EntryWriter:
    return EntryWriter(store, KEY, verify=verify, share=share)


def complete(writer: EntryWriter, *sources: FileSource, location: str = "") -> None:
    """Commit an entry of these sources, the first of which is used in place where a location is given."""
    locations = {sources[0].name: location} if location else {}
    foreign = ["some.domain"]
    writer.commit(b"the rewritten model", sources, locations, report=REPORT, extensions=True, foreign=foreign)


def made(store: Store, source: Path, location: str = "", **options: Any) -> None:
    complete(writer_of(store, **options), FileSource(str(source)), location=location)


def found_manifest(store: Store, *, verify: bool = False) -> Manifest:
    """What the entry says of itself; it can be used."""
    found = store.find(KEY, verify=verify)
    assert found is not None
    return found.manifest


def modes(store: Store) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in Path(store.path_of(KEY)).iterdir() if path.name != LINKED}


def test_buffers_are_files_of_the_entry(store: Store, source: Path) -> None:
    writer = writer_of(store)
    first, second = writer.make_buffers([SIZE, 2 * SIZE])
    assert (first.array.size, second.array.size) == (SIZE, 2 * SIZE)
    assert not first.array.any()
    data = np.arange(SIZE).astype(np.uint8)
    first.write(0, data)
    assert store.find(KEY, verify=False) is None
    complete(writer, FileSource(str(source)))
    entry = Path(store.path_of(KEY))
    assert (entry / PACKED).read_bytes() == data.tobytes()
    assert (entry / "packed-1.bin").stat().st_size == 2 * SIZE
    assert (entry / MODEL).read_bytes() == b"the rewritten model"
    assert modes(store) == {0o400}
    # Once it is complete there is nothing to abandon.
    writer.abandon()
    found_manifest(store)


@pytest.mark.parametrize("verify", [False, True])
def test_what_the_manifest_says(store: Store, source: Path, tmp_path: Path, verify: bool) -> None:
    link = tmp_path / "link.data"
    link.symlink_to(source)
    writer = writer_of(store, verify=verify)
    writer.make_buffers([SIZE])
    complete(writer, FileSource(str(link)), ExternalFiles.within(str(tmp_path)).open("link.data"))
    manifest = found_manifest(store, verify=verify)
    assert writer.committed
    assert (manifest.key, manifest.report, manifest.boot) == (KEY, REPORT, host.boot_id())
    assert (manifest.extensions, manifest.foreign, manifest.prepacked_bytes) == (True, ("some.domain",), 0)
    assert [(file.name, bool(file.digest)) for file in manifest.files] == [(MODEL, True), (PACKED, verify)]
    digest = digest_of(source.read_bytes()) if verify else ""
    described = [
        (str(source.resolve()), Identity.of(source.stat()), names, "", False, digest) for names in ((), (str(link),))
    ]
    assert [tuple(one) for one in manifest.sources] == described


def test_what_is_used_in_place_is_linked(store: Store, source: Path) -> None:
    made(store, source, LINKED)
    before, link = source.stat(), Path(store.path_of(KEY), LINKED)
    assert os.path.samefile(source, link)
    manifest = found_manifest(store)
    assert (manifest.sources[0].location, manifest.sources[0].linked) == (LINKED, True)
    assert [file.name for file in manifest.files] == [MODEL]
    # Once: making the link changes the file's times, by which other entries know it.
    made(store, source, LINKED)
    assert source.stat().st_ctime_ns == before.st_ctime_ns
    found_manifest(store)
    # A link of what the file was is replaced.
    replaced(source)
    made(store, source, LINKED)
    assert os.path.samefile(source, link)
    found_manifest(store)


@pytest.mark.parametrize("problem", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_what_cannot_be_linked_is_used_where_it_is(
    store: Store, source: Path, problem: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, os, "link", problem)
    made(store, source, LINKED)
    (described,) = found_manifest(store).sources
    assert (described.location, described.linked) == (LINKED, False)
    assert not Path(store.path_of(KEY), LINKED).exists()


@pytest.mark.parametrize("location", ["", "data-1"])
def test_links_that_are_not_wanted_any_more_go(store: Store, source: Path, location: str) -> None:
    made(store, source, LINKED)
    made(store, source, location)
    assert not Path(store.path_of(KEY), LINKED).exists()
    # That has changed one of the file's times, so that the entry has to be made once more.
    made(store, source, location)
    found_manifest(store)


@pytest.mark.parametrize("change", [rewritten, replaced, longer])
@pytest.mark.parametrize("location", ["", LINKED])
def test_a_source_that_changes_is_not_written_of(
    store: Store, source: Path, change: Callable[[Path], None], location: str
) -> None:
    opened, writer = FileSource(str(source)), writer_of(store)
    writer.make_buffers([SIZE])
    assert len(leftovers(Path(store.folder))) == 1
    change(source)
    with pytest.raises(SourceChangedError, match=str(source)):
        complete(writer, opened, location=location)
    assert not writer.committed
    writer.abandon()
    assert not os.listdir(store.folder)


# ---- what is not completed


def test_nothing_is_begun_before_there_is_something_to_write(store: Store) -> None:
    writer_of(store).abandon()
    assert not os.listdir(store.folder)


def test_no_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, os, "posix_fallocate", errno.ENOSPC)
    writer = writer_of(store)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        writer.make_buffers([SIZE])
    writer.abandon()
    assert not os.listdir(store.folder)


def test_that_there_is_nothing_to_do_is_an_entry_too(store: Store, source: Path) -> None:
    writer = writer_of(store)
    writer.commit_nothing([FileSource(str(source))], Report("stock", StockReason.NOT_FUSIBLE, "a detail"))
    manifest = found_manifest(store)
    assert writer.committed
    assert (manifest.files, manifest.report) == ((), Report("stock", StockReason.NOT_FUSIBLE, "a detail"))
    rewritten(source)
    assert store.find(KEY, verify=False) is None


# ---- pre-packed weights


def test_a_helper_completes_the_entry(store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"""
    stat --format=%a "$4"/{PACKED} > "{tmp_path}/mode"
    echo shared > "$4"/{SHARED_MODEL}
    printf more >> "$4"/{PACKED}
    echo 4321
    """
    interpreter(tmp_path / "python3", script, monkeypatch)
    writer = writer_of(store, share=True)
    writer.make_buffers([SIZE])
    complete(writer, FileSource(str(source)), location=LINKED)
    manifest = found_manifest(store)
    assert manifest.prepacked_bytes == 4321
    assert {file.name: file.size for file in manifest.files} == {MODEL: 19, SHARED_MODEL: 7, PACKED: SIZE + 4}
    assert (tmp_path / "mode").read_text() == "600\n"
    assert modes(store) == {0o400}


def test_a_helper_that_fails_costs_only_the_sharing(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter(tmp_path / "python3", "exit 3", monkeypatch)
    made(store, source, share=True)
    assert found_manifest(store).prepacked_bytes == 0
