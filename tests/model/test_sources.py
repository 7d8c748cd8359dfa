"""Where bytes are: files that may change or vanish, memory, and which files a model may name."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ort_qdq_plugin.errors import ModelError, SourceChangedError, SourceUnreadableError
from ort_qdq_plugin.model.sources import ByteSource, ExternalFiles, FileSource, MemorySource
from tests.support import descriptors, settled_descriptors

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


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 1000), (0, 0), (3, 5), (996, 4), (1000, 0)])
def test_a_file_gives_its_bytes(folder: Path, offset: int, nbytes: int) -> None:
    source = FileSource(str(folder / "w.data"))
    assert (source.name, source.size) == (str(folder / "w.data"), 1000)
    assert read(source, offset, nbytes) == CONTENT[offset : offset + nbytes]


@pytest.mark.parametrize(
    ("offset", "nbytes", "message"), [(996, 5, "ends at 1000 bytes, 1 more"), (2000, 1, "ends at 2000")]
)
def test_a_file_that_ends_before_is_taken_for_changed(folder: Path, offset: int, nbytes: int, message: str) -> None:
    with pytest.raises(SourceChangedError, match=rf"w\.data: {message}"):
        read(FileSource(str(folder / "w.data")), offset, nbytes)


def test_what_the_system_gives_in_pieces_is_put_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv

    def piece(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return whole(descriptor, [buffers[0][:300]], offset)

    monkeypatch.setattr(os, "preadv", piece)
    assert read(FileSource(str(folder / "w.data")), 7, 900) == CONTENT[7:907]


@pytest.mark.parametrize(("code", "is_unreadable"), [(errno.EIO, True), (errno.EINVAL, False)])
def test_a_disk_that_fails_is_said_to_be_unreadable(
    folder: Path, code: int, is_unreadable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    source = FileSource(str(folder / "w.data"))
    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(OSError, match=r"byte 8 .*w\.data" if is_unreadable else "Invalid argument") as refused:
        read(source, 8, 4)
    assert refused.value.errno == code
    assert isinstance(refused.value, SourceUnreadableError) == is_unreadable


def test_a_file_stays_the_one_that_was_opened(folder: Path) -> None:
    source = FileSource(str(folder / "w.data"))
    (folder / "new").write_bytes(b"something else")
    (folder / "new").replace(folder / "w.data")
    source.check_unchanged()
    assert read(source, 0, 1000) == CONTENT
    assert bytes(source.buffer()) == CONTENT


def test_sources_of_one_file_are_two(folder: Path) -> None:
    one, other = (FileSource(str(folder / "w.data")) for _ in range(2))
    assert one.identity != other.identity


@pytest.mark.parametrize("change", ["time", "longer", "shorter"])
def test_a_changed_file_is_noticed(folder: Path, change: str) -> None:
    source = FileSource(str(folder / "w.data"))
    source.check_unchanged()
    status = os.stat(folder / "w.data")
    if change != "time":
        os.truncate(folder / "w.data", 1001 if change == "longer" else 999)
    os.utime(folder / "w.data", ns=(1, 1) if change == "time" else (status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(SourceChangedError, match=r"w\.data: changed"):
        source.check_unchanged()


def test_a_file_that_is_shorter_by_now_is_not_mapped(folder: Path) -> None:
    source = FileSource(str(folder / "w.data"))
    os.truncate(folder / "w.data", 999)
    with pytest.raises(SourceChangedError, match="less than 1000 bytes"):
        source.buffer()


def test_a_mapping_outlives_the_source(folder: Path) -> None:
    source = FileSource(str(folder / "w.data"))
    mapping = source.buffer()
    assert source.buffer() is mapping
    source.close()
    assert mapping[:3] == b"\0\1\2"
    with pytest.raises(TypeError):
        mapping[0] = 1


def test_a_source_that_nobody_closes_leaves_no_descriptor(folder: Path) -> None:
    before = settled_descriptors()
    source = FileSource(str(folder / "w.data"))
    assert descriptors() == before + 1
    del source
    assert descriptors() == before


def test_closing_twice_is_once(folder: Path) -> None:
    source = FileSource(str(folder / "w.data"))
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


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "not a relative path"),
        ("{outside}", "not a relative path"),
        ("a\0b", "not a relative path"),
        ("x" * (PATH_MAX + 1), "not a relative path"),
        ("../outside.data", "leaves the model's folder"),
        ("sub/../../outside.data", "leaves the model's folder"),
        ("out", "leaves the model's folder"),
        ("..", "leaves the model's folder"),
        (".", "not a regular file"),
    ],
)
def test_locations_that_onnx_runtime_refuses(folder: Path, location: str, message: str) -> None:
    (folder / "out").symlink_to(folder.parent / "outside.data")
    (folder / "sub").mkdir()
    with pytest.raises(ModelError, match=message):
        beside(folder).open(location.format(outside=folder.parent / "outside.data"))


def test_a_folder_whose_name_begins_alike_is_another_one(folder: Path) -> None:
    (folder.parent / "inside-too").mkdir()
    (folder.parent / "inside-too" / "w.data").write_bytes(CONTENT)
    with pytest.raises(ModelError, match="leaves the model's folder"):
        beside(folder).open("../inside-too/w.data")


def test_special_files_are_refused_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "dir").mkdir()
    for location in ("fifo", "dir"):
        with pytest.raises(ModelError, match="regular"):
            beside(folder).open(location)


@pytest.mark.parametrize("location", ["gone.data", "x" * 200])
def test_a_missing_file_says_so(folder: Path, location: str) -> None:
    with pytest.raises(FileNotFoundError, match=location):
        beside(folder).open(location)


def test_a_location_of_as_many_characters_as_a_path_may_have_is_looked_for(folder: Path) -> None:
    with pytest.raises(OSError, match=r"File name too long|No such file"):
        beside(folder).open("x" * PATH_MAX)


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
    with pytest.raises(ModelError, match="without a folder"):
        files.open("w.data")
    assert files.opened == ()


def test_a_file_of_several_locations_counts_once(folder: Path) -> None:
    files = beside(folder)
    (folder / "v.data").write_bytes(b"")
    assert files.open("w.data") is files.open("w.data") is files.open("./w.data")
    assert files.open("v.data") is not files.open("w.data")
    assert files.opened == (files.open("w.data"), files.open("v.data"))
