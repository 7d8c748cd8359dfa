"""Where bytes are: files that may change or vanish, memory, and which files a model may name."""

import errno
import gc
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ort_qdq_plugin.errors import ModelError, SourceChangedError, SourceUnreadableError
from ort_qdq_plugin.model.sources import ByteSource, ExternalFiles, FileSource, MemorySource
from tests.support import descriptors, refusing, settled_descriptors

CONTENT = bytes(range(250)) * 4  # of w.data
PATH_MAX = 4096
COMPARED_BYTES = 1 << 20


def read(source: ByteSource, offset: int, nbytes: int) -> bytes:
    target = bytearray(nbytes)
    source.read_into(offset, memoryview(target))
    return bytes(target)


# Memory


@given(data=st.binary(max_size=50), cut=st.tuples(st.integers(0, 50), st.integers(0, 50)))
def test_memory_gives_its_bytes(data: bytes, cut: tuple[int, int]) -> None:
    start, end = sorted(min(at, len(data)) for at in cut)
    source = MemorySource(data)
    assert source.size == len(data)
    assert read(source, start, end - start) == data[start:end]
    assert source.buffer() is data
    source.close()
    source.check_unchanged()


@pytest.mark.parametrize(("nbytes", "are_one"), [(0, True), (COMPARED_BYTES - 1, True), (COMPARED_BYTES, False)])
def test_little_memory_of_the_same_content_counts_as_the_same(nbytes: int, are_one: bool) -> None:
    one, other = MemorySource(bytes(nbytes)), MemorySource(bytes(nbytes), "another name")
    assert (one.identity == other.identity) == are_one
    assert one.identity == one.identity
    assert one.identity != MemorySource(b"x" * (nbytes + 1)).identity


# Files


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "w.data"


@pytest.fixture
def source(path: Path) -> FileSource:
    return FileSource(str(path))


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 1000), (0, 0), (3, 5), (996, 4), (1000, 0)])
def test_a_file_gives_its_bytes(source: FileSource, path: Path, offset: int, nbytes: int) -> None:
    assert (source.name, source.size) == (str(path), 1000)
    assert read(source, offset, nbytes) == CONTENT[offset : offset + nbytes]


@pytest.mark.parametrize(
    ("offset", "nbytes", "message"), [(996, 5, "ends at 1000 bytes, 1 more"), (2000, 1, "ends at 2000")]
)
def test_a_file_that_ends_before_is_taken_for_changed(source: FileSource, offset: int, nbytes: int, message: str) -> None:
    with pytest.raises(SourceChangedError, match=rf"w\.data: {message}"):
        read(source, offset, nbytes)


def test_what_the_system_gives_in_pieces_is_put_together(source: FileSource, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: whole(file, [buffers[0][:300]], offset))
    assert read(source, 7, 900) == CONTENT[7:907]


@pytest.mark.parametrize(("code", "is_unreadable"), [(errno.EIO, True), (errno.EINVAL, False)])
def test_a_disk_that_fails_is_said_to_be_unreadable(
    source: FileSource, code: int, is_unreadable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(OSError, match=r"byte 8 .*w\.data" if is_unreadable else "Invalid argument") as refused:
        read(source, 8, 4)
    assert refused.value.errno == code
    assert isinstance(refused.value, SourceUnreadableError) == is_unreadable


@pytest.mark.needs("free names")
def test_a_file_stays_the_one_that_was_opened(source: FileSource, path: Path) -> None:
    path.with_name("new").write_bytes(b"something else")
    path.with_name("new").replace(path)
    source.check_unchanged()
    assert read(source, 0, 1000) == CONTENT
    assert bytes(source.buffer()) == CONTENT


def test_sources_of_one_file_are_two(source: FileSource, path: Path) -> None:
    assert source.identity != FileSource(str(path)).identity


@pytest.mark.parametrize("size", [999, 1000, 1001])
def test_a_changed_file_is_noticed(source: FileSource, path: Path, size: int) -> None:
    """By its size, or else by its time."""
    source.check_unchanged()
    status = os.stat(path)
    os.truncate(path, size)
    os.utime(path, ns=(1, 1) if size == 1000 else (status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(SourceChangedError, match=r"w\.data: changed"):
        source.check_unchanged()


def test_a_file_that_is_shorter_by_now_is_not_mapped(source: FileSource, path: Path) -> None:
    os.truncate(path, 999)
    with pytest.raises(SourceChangedError, match="less than 1000 bytes"):
        source.buffer()


def test_a_mapping_outlives_the_source(source: FileSource) -> None:
    mapping = source.buffer()
    assert source.buffer() is mapping
    source.close()
    assert mapping[:3] == b"\0\1\2"
    with pytest.raises(TypeError):
        mapping[0] = 1


def test_a_source_that_nobody_closes_leaves_no_descriptor(path: Path) -> None:
    before = settled_descriptors()
    source = FileSource(str(path))
    assert descriptors() == before + 1
    del source
    assert descriptors() == before


def test_closing_twice_is_once(path: Path) -> None:
    source = FileSource(str(path))
    source.close()
    other = os.open(os.devnull, os.O_RDONLY)
    source.close()
    del source
    os.close(other)


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
def test_a_source_that_cannot_be_opened_leaves_other_descriptors_alone(tmp_path: Path, kind: str) -> None:
    """Neither noise from a destructor nor a second close of a number that is somebody else's by then."""
    path = tmp_path / "thing"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    before = settled_descriptors()
    with pytest.raises((ModelError, OSError)) as caught:
        FileSource(str(path))
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
    del caught
    gc.collect()
    for descriptor in others:
        os.close(descriptor)
    assert descriptors() == before


# Which files a model may name


def beside(folder: Path) -> ExternalFiles:
    return ExternalFiles.beside(str(folder / "m.onnx"))


NO_PATH, LEAVES, NO_FILE = "not a relative path", "leaves the model's folder", "not a regular file"


@pytest.mark.parametrize(("location", "message"), [
    ("", NO_PATH), ("{outside}", NO_PATH), ("a\0b", NO_PATH), ("x" * (PATH_MAX + 1), NO_PATH),
    ("../outside.data", LEAVES), ("sub/../../outside.data", LEAVES), ("out", LEAVES), ("..", LEAVES),
    ("../inside-too/w.data", LEAVES),  # another folder, whose name begins alike
    (".", NO_FILE), ("sub", NO_FILE), ("fifo", NO_FILE),
])  # fmt: skip
def test_locations_that_onnx_runtime_refuses(folder: Path, location: str, message: str) -> None:
    """Special files without waiting."""
    (folder / "out").symlink_to(folder.parent / "outside.data")
    for made in (folder / "sub", folder.parent / "inside-too"):
        made.mkdir()
    (folder.parent / "inside-too" / "w.data").write_bytes(CONTENT)
    os.mkfifo(folder / "fifo")
    with refusing(message):
        beside(folder).open(location.format(outside=folder.parent / "outside.data"))


@pytest.mark.skipif(os.sep == "/", reason="paths have neither drives nor devices here")
@pytest.mark.parametrize(("location", "message"), [
    ("C:w.data", NO_PATH), ("C:\\w.data", NO_PATH), ("\\w.data", NO_PATH), ("/w.data", NO_PATH), ("w.data:more", NO_PATH),
    ("\\\\server\\share\\w.data", NO_PATH), ("..\\outside.data", LEAVES), ("NUL", LEAVES),
])  # fmt: skip
def test_locations_that_windows_takes_for_others(folder: Path, location: str, message: str) -> None:
    with refusing(message):
        beside(folder).open(location)


def test_a_location_that_leads_to_another_drive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> str:
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(os.path, "commonpath", refuse)
    with refusing(LEAVES):
        beside(folder).open("w.data")


@pytest.mark.parametrize(("location", "message"), [
    ("gone.data", "gone.data"), ("x" * 200, "x" * 200), ("x" * PATH_MAX, "File name too long|does not exist"),
])  # fmt: skip
def test_a_missing_file_says_so(folder: Path, location: str, message: str) -> None:
    with refusing(f"external data .*({message})"):
        beside(folder).open(location)


@pytest.mark.parametrize("location", ["w.data", "./w.data", "sub/../w.data", "sub/link"])
@pytest.mark.parametrize("within", [False, True])
def test_locations_within_the_folder(folder: Path, location: str, within: bool) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "link").symlink_to("../w.data")
    files = ExternalFiles.within(str(folder)) if within else beside(folder)
    assert read(files.open(location), 0, 1000) == CONTENT


def test_a_model_that_is_a_link_may_use_what_lies_beside_its_target(folder: Path, tmp_path: Path) -> None:
    """As in Hugging Face's cache: snapshots of links into a folder of blobs."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (folder / "m.onnx").write_bytes(b"")
    (snapshot / "m.onnx").symlink_to(folder / "m.onnx")
    (snapshot / "w.data").symlink_to(folder / "w.data")
    assert beside(snapshot).open("w.data").size == 1000


def test_a_model_without_a_folder_has_no_files() -> None:
    files = ExternalFiles.none()
    with refusing("without a folder"):
        files.open("w.data")
    assert files.opened == ()


def test_a_file_of_several_locations_counts_once(folder: Path) -> None:
    files = beside(folder)
    (folder / "v.data").write_bytes(b"")
    assert files.open("w.data") is files.open("w.data") is files.open("./w.data")
    assert files.open("v.data") is not files.open("w.data")
    assert files.opened == (files.open("w.data"), files.open("v.data"))
