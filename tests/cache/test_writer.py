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
from ort_qdq_plugin.cache.contained import DATA
from ort_qdq_plugin.cache.manifest import Identity, Manifest, digest_of
from ort_qdq_plugin.cache.store import MODEL, SHARED_MODEL, Store
from ort_qdq_plugin.cache.writer import EntryWriter
from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.model.sources import ExternalFiles, FileSource
from ort_qdq_plugin.system.platform import host
from tests.cache.support import KEY, PACKED, leftovers, longer, replaced, rewritten
from tests.cache.test_helper import interpreter
from tests.ort.test_buffers import COUNT, adding
from tests.support import refuse

REPORT = Report("borrowed", packed_bytes=100)
IN_PLACE = "data-0"
MODEL_BYTES = b"the rewritten model"
SIZE = 10_000


def writer_of(store: Store, *, verify: bool = False, share: bool = False, self_contained: bool = False) -> EntryWriter:
    return EntryWriter(store, KEY, verify=verify, share=share, self_contained=self_contained)


def complete(writer: EntryWriter, *sources: FileSource, location: str = "", model: bytes = MODEL_BYTES) -> None:
    """Commit an entry of these sources, the first of which is used in place where a location is given."""
    locations = {sources[0].name: location} if location else {}
    foreign = ["some.domain"]
    writer.commit(model, sources, locations, report=REPORT, extensions=True, foreign=foreign)


def made(store: Store, source: Path, location: str = "", model: bytes = MODEL_BYTES, **options: Any) -> None:
    complete(writer_of(store, **options), FileSource(str(source)), location=location, model=model)


def found_manifest(store: Store, *, verify: bool = False) -> Manifest:
    """What the entry says of itself; it can be used."""
    found = store.find(KEY, verify=verify)
    assert found is not None
    return found.manifest


def modes(store: Store) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in Path(store.path_of(KEY)).iterdir()}


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
    assert (entry / MODEL).read_bytes() == MODEL_BYTES
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
    described = [(str(source.resolve()), Identity.of(source.stat()), names, "", digest) for names in ((), (str(link),))]
    assert [tuple(one) for one in manifest.sources] == described


@pytest.mark.parametrize("whole", [{}, {"self_contained": True}, {"share": True}])
def test_what_is_used_in_place(
    store: Store, source: Path, whole: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file itself, or a copy of its bytes; no link is made, which would change one of the file's times."""
    interpreter(tmp_path / "python3", "echo 0", monkeypatch)
    before = source.stat()
    model = adding(IN_PLACE, 64)
    made(store, source, IN_PLACE, model, **whole)
    manifest, after, entry = found_manifest(store), source.stat(), Path(store.path_of(KEY))
    assert (after.st_nlink, after.st_ctime_ns) == (1, before.st_ctime_ns)
    assert manifest.sources[0].location == ("" if whole else IN_PLACE)
    assert (manifest.report.copied_bytes, (entry / MODEL).read_bytes() == model) == (
        (COUNT * 4, False) if whole else (0, True)
    )
    assert {file.name for file in manifest.files} == ({MODEL, DATA} if whole else {MODEL})
    if whole:
        assert (entry / DATA).read_bytes() == source.read_bytes()[64:][: COUNT * 4]
    assert modes(store) == {0o400}


@pytest.mark.parametrize("change", [rewritten, replaced, longer])
@pytest.mark.parametrize("location", ["", IN_PLACE])
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
    stat --format=%a "$4"/{PACKED} "$4"/{DATA} > "{tmp_path}/mode"
    echo shared > "$4"/{SHARED_MODEL}
    printf more >> "$4"/{PACKED}
    echo 4321
    """
    interpreter(tmp_path / "python3", script, monkeypatch)
    writer = writer_of(store, share=True)
    writer.make_buffers([SIZE])
    complete(writer, FileSource(str(source)), location=IN_PLACE, model=adding(IN_PLACE))
    manifest = found_manifest(store)
    assert manifest.prepacked_bytes == 4321
    assert {file.name: file.size for file in manifest.files if file.name != MODEL} == {
        SHARED_MODEL: 7, PACKED: SIZE + 4, DATA: COUNT * 4,
    }  # fmt: skip
    assert (tmp_path / "mode").read_text() == "600\n600\n"
    assert modes(store) == {0o400}


def test_a_helper_that_fails_costs_only_the_sharing(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter(tmp_path / "python3", "exit 3", monkeypatch)
    made(store, source, model=adding(PACKED), share=True)
    assert found_manifest(store).prepacked_bytes == 0
