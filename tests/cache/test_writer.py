"""Writing entries: what they have of the model's own files, and what is left of one that is not completed."""

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ort_qdq_plugin import Report, StockReason
from ort_qdq_plugin.cache.contained import DATA
from ort_qdq_plugin.cache.entry import MODEL, SHARED_MODEL
from ort_qdq_plugin.cache.key import Identity, entry_key
from ort_qdq_plugin.cache.manifest import Manifest, digest_of
from ort_qdq_plugin.cache.store import Store
from ort_qdq_plugin.cache.writer import EntryWriter, YoungSources
from ort_qdq_plugin.model.sources import ExternalFiles, FileSource
from ort_qdq_plugin.system.platform import files, host
from tests.cache.support import PACKED, REPLACED, entries, leftovers, longer, rewritten
from tests.cache.test_helper import interpreter
from tests.lacking import has
from tests.ort.test_buffers import COUNT, adding
from tests.support import refuse

REPORT = Report("borrowed", packed_bytes=100)
IN_PLACE = "data-0"
MODEL_BYTES = b"the rewritten model"
SIZE = 10_000


def writer_of(store: Store, model: Path, *, verify: bool = False, share: bool = False, **options: Any) -> EntryWriter:
    key = entry_key(["here"], Identity.of(model.stat()))
    return EntryWriter(store, key, verify=verify, share=share, **options)


def complete(writer: EntryWriter, *sources: FileSource, location: str = "", model: bytes = MODEL_BYTES) -> None:
    """Commit an entry of these sources, the first of which is used in place where a location is given."""
    locations = {sources[0].name: location} if location else {}
    foreign = ["some.domain"]
    writer.commit(model, sources, locations, report=REPORT, extensions=True, foreign=foreign)


def made(store: Store, source: Path, location: str = "", model: bytes = MODEL_BYTES, **options: Any) -> None:
    complete(writer_of(store, source, **options), FileSource(str(source)), location=location, model=model)


def entry_in(store: Store) -> Path:
    """The folder of the only entry."""
    (entry,) = entries(Path(store.folder))
    return entry


def found_manifest(store: Store, *, verify: bool = False) -> Manifest:
    """What the only entry says of itself; it can be used."""
    found = store.find(entry_in(store).name, verify=verify)
    assert found is not None
    return found.manifest


def check_modes(store: Store) -> None:
    """Nobody can write to the files of the only entry, where they have modes."""
    if has("modes"):
        assert {stat.S_IMODE(path.stat().st_mode) for path in entry_in(store).iterdir()} == {0o400}


def test_buffers_are_files_of_the_entry(store: Store, source: Path) -> None:
    writer = writer_of(store, source)
    first, second = writer.make_buffers([SIZE, 2 * SIZE])
    assert (first.array.size, second.array.size) == (SIZE, 2 * SIZE)
    assert not first.array.any()
    data = np.arange(SIZE).astype(np.uint8)
    first.write(0, data)
    assert not entries(Path(store.folder))
    complete(writer, FileSource(str(source)))
    entry = entry_in(store)
    assert (entry / PACKED).read_bytes() == data.tobytes()
    assert (entry / "packed-1.bin").stat().st_size == 2 * SIZE
    assert (entry / MODEL).read_bytes() == MODEL_BYTES
    check_modes(store)
    # Once it is complete there is nothing to abandon.
    writer.abandon()
    found_manifest(store)


@pytest.mark.parametrize("verify", [False, True])
def test_what_the_manifest_says(store: Store, source: Path, tmp_path: Path, verify: bool) -> None:
    link = tmp_path / "link.data"
    link.symlink_to(source)
    writer = writer_of(store, source, verify=verify)
    writer.make_buffers([SIZE])
    complete(writer, FileSource(str(link)), ExternalFiles.within(str(tmp_path)).open("link.data"))
    manifest = found_manifest(store, verify=verify)
    assert writer.holder is not None
    assert (manifest.key, manifest.report, manifest.boot) == (entry_in(store).name, REPORT, host.boot_id())
    assert (manifest.extensions, manifest.foreign, manifest.prepacked_bytes) == (True, ("some.domain",), 0)
    assert [(file.name, bool(file.digest)) for file in manifest.files] == [(MODEL, True), (PACKED, verify)]
    digest = digest_of(source.read_bytes()) if verify else ""
    described = [(str(source.resolve()), Identity.of(source.stat()), names, "", digest, "") for names in ((), (str(link),))]
    assert [tuple(one) for one in manifest.sources] == described


@pytest.mark.parametrize("whole", [{}, {"self_contained": True}, {"share": True}])
def test_what_is_used_in_place(
    store: Store, source: Path, whole: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file itself, or a copy of its bytes; no link is made, which would change one of the file's times."""
    if "share" in whole:
        interpreter(tmp_path / "python3", "echo 0", monkeypatch)
    before = source.stat()
    model = adding(IN_PLACE, 64)
    made(store, source, IN_PLACE, model, **whole)
    manifest, after, entry = found_manifest(store), source.stat(), entry_in(store)
    assert (after.st_nlink, after.st_ctime_ns) == (1, before.st_ctime_ns)
    assert manifest.sources[0].location == ("" if whole else IN_PLACE)
    assert (manifest.report.copied_bytes, (entry / MODEL).read_bytes() == model) == (
        (COUNT * 4, False) if whole else (0, True)
    )
    assert {file.name for file in manifest.files} == ({MODEL, DATA} if whole else {MODEL})
    if whole:
        assert (entry / DATA).read_bytes() == source.read_bytes()[64:][: COUNT * 4]
    check_modes(store)


@pytest.mark.parametrize("change", [rewritten, REPLACED, longer])
@pytest.mark.parametrize("location", ["", IN_PLACE])
def test_a_source_that_changes_is_not_written_of(
    store: Store, source: Path, change: Callable[[Path], None], location: str
) -> None:
    opened, writer = FileSource(str(source)), writer_of(store, source)
    writer.make_buffers([SIZE])
    assert len(leftovers(Path(store.folder))) == 1
    change(source)
    complete(writer, opened, location=location)
    assert (writer.holder, str(source) in writer.problem) == (None, True)
    assert not os.listdir(store.folder)


MS, SECOND = 1_000_000, 1_000_000_000


def committed(writer: EntryWriter, source: FileSource) -> None:
    complete(writer, source)


def with_nothing(writer: EntryWriter, source: FileSource) -> None:
    writer.commit_nothing([source], REPORT)


def checked(writer: EntryWriter, source: FileSource) -> None:
    writer.check_age([source])


@pytest.mark.parametrize("call", [checked, committed, with_nothing])
@pytest.mark.parametrize(
    ("age", "waits"),
    [(25 * MS, 0), (15 * MS, 0.02), (-1000 * SECOND, 0.02), (3 * SECOND, 0), ("whole", 2.0), ("whole and old", 0)],
)
def test_young_sources_are_to_be_read_again(
    store: Store, source: Path, call: Callable[[EntryWriter, FileSource], None], age: int | str, waits: float
) -> None:
    """Within a step of the clock, of a file system that stores whole seconds too, a change leaves no trace."""
    now = time.time_ns()
    whole = now - now % SECOND
    changed = {"whole": whole, "whole and old": whole - 2 * SECOND}[age] if isinstance(age, str) else now - age | 1
    os.utime(source, ns=(changed, changed))
    opened, writer = FileSource(str(source)), writer_of(store, source)
    writer._began_ns = now
    if waits:
        with pytest.raises(YoungSources) as young:
            call(writer, opened)
        assert (young.value.seconds, list(young.value.identities)) == (waits, [Identity.of(source.stat())])
        writer = writer_of(store, source, settled=young.value.identities)
    call(writer, opened)


def test_an_entry_has_the_name_of_its_model(store: Store, source: Path) -> None:
    """Another file may have taken its place between the look at it and opening it."""
    writer = writer_of(store, source)
    rewritten(source)
    os.utime(source, (1, 1))
    complete(writer, FileSource(str(source)))
    assert (writer.holder, source.name in writer.problem) == (None, True)


# ---- what is not completed


def test_nothing_is_begun_before_there_is_something_to_write(store: Store, source: Path) -> None:
    writer_of(store, source).abandon()
    assert not os.listdir(store.folder)


def test_no_room(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, files, "reserve", errno.ENOSPC)
    writer = writer_of(store, source)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        writer.make_buffers([SIZE])
    writer.abandon()
    assert not os.listdir(store.folder)


def test_that_there_is_nothing_to_do_is_an_entry_too(store: Store, source: Path) -> None:
    writer = writer_of(store, source)
    writer.commit_nothing([FileSource(str(source))], Report("stock", StockReason.NOT_FUSIBLE, "a detail"))
    manifest = found_manifest(store)
    assert writer.holder is not None
    assert (manifest.files, manifest.report) == ((), Report("stock", StockReason.NOT_FUSIBLE, "a detail"))
    rewritten(source)
    assert store.find(entry_in(store).name, verify=False) is None


# ---- pre-packed weights


def test_a_helper_completes_the_entry(store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"""
    stat --format=%a "$4"/{PACKED} "$4"/{DATA} > "{tmp_path}/mode"
    echo shared > "$4"/{SHARED_MODEL}
    printf more >> "$4"/{PACKED}
    echo 4321
    """
    interpreter(tmp_path / "python3", script, monkeypatch)
    writer = writer_of(store, source, share=True)
    writer.make_buffers([SIZE])
    complete(writer, FileSource(str(source)), location=IN_PLACE, model=adding(IN_PLACE))
    manifest = found_manifest(store)
    assert manifest.prepacked_bytes == 4321
    assert {file.name: file.size for file in manifest.files if file.name != MODEL} == {
        SHARED_MODEL: 7, PACKED: SIZE + 4, DATA: COUNT * 4,
    }  # fmt: skip
    assert (tmp_path / "mode").read_text() == "600\n600\n"
    check_modes(store)


def test_a_helper_that_fails_costs_only_the_sharing(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter(tmp_path / "python3", "exit 3", monkeypatch)
    made(store, source, model=adding(PACKED), share=True)
    assert found_manifest(store).prepacked_bytes == 0
