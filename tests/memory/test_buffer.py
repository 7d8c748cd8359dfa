"""Packed buffers: where they are, what is left of them, and what happens when there is no room."""

import errno
import gc
import logging
import mmap
import os
import stat
import subprocess
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ort_qdq_plugin.memory.buffer import PackedBuffer, buffer_at, make_buffers, spill_directories
from ort_qdq_plugin.memory.named_files import sweep
from ort_qdq_plugin.system.platform import files
from tests.support import BOTH_WAYS_TO_NO_NAME, descriptors, mapped, python, refuse, settled_descriptors

SIZE = 2 << 20
FILE_FROM = 1 << 20  # where it may choose


def make_buffer(size: int, kind: str, spill_dir: str | None, linkable: bool = False) -> PackedBuffer:
    (buffer,) = make_buffers([size], kind, spill_dir, linkable)
    return buffer


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; needs root."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small file system here")
    yield folder
    gc.collect()
    subprocess.run(["umount", "-l", str(folder)], check=True)


def filled(buffer: PackedBuffer) -> None:
    """Write by both ways and read it back."""
    assert buffer.array.size == len(buffer.mapping)
    assert not buffer.array.any()
    data = np.arange(5000, dtype=np.uint16).view(np.uint8)
    buffer.write(0, data)
    buffer.write(buffer.array.size - data.size, data.reshape(100, -1))
    buffer.array[20_000:20_010] = 7
    buffer.trim(0, buffer.array.size)
    buffer.seal()
    np.testing.assert_array_equal(buffer.array[: data.size], data)
    np.testing.assert_array_equal(buffer.array[-data.size :], data)
    assert (buffer.array[20_000:20_010] == 7).all()
    assert not buffer.array[20_010 : buffer.array.size - data.size].any()


@pytest.mark.parametrize("linkable", [False, True])
@pytest.mark.parametrize("kind", ["auto", "file", "memory"])
def test_holds_what_is_written(tmp_path: Path, kind: str, linkable: bool) -> None:
    buffer = make_buffer(SIZE, kind, str(tmp_path), linkable)
    assert buffer.in_file == (linkable or kind != "memory")
    assert buffer.path is None or not (files.SHARES_FREELY and hasattr(os, "O_TMPFILE"))
    if linkable:
        buffer.link()
        assert buffer.path is not None
    filled(buffer)
    assert bool(mapped(tmp_path)) == buffer.in_file
    if buffer.path is not None:
        assert Path(buffer.path).read_bytes() == buffer.array.tobytes()
    buffer.discard()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("sizes", "in_file"), [([FILE_FROM - 1], False), ([FILE_FROM], True), ([FILE_FROM - 1, 1], True)])
def test_small_ones_are_not_worth_a_file(tmp_path: Path, sizes: list[int], in_file: bool) -> None:
    """What counts is how large they are together."""
    assert [buffer.in_file for buffer in make_buffers(sizes, "auto", str(tmp_path))] == [in_file] * len(sizes)
    assert [buffer.in_file for buffer in make_buffers(sizes, "file", str(tmp_path))] == [True] * len(sizes)


@pytest.mark.needs("unnamed files")
def test_no_name_at_any_time(tmp_path: Path) -> None:
    buffer = make_buffer(SIZE, "file", str(tmp_path))
    assert not list(tmp_path.iterdir())
    assert mapped(tmp_path)
    del buffer
    assert not mapped(tmp_path)


def test_memory_cannot_be_linked(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="memory"):
        make_buffer(SIZE, "memory", str(tmp_path)).link()


TOO_LARGE = """
import resource, signal, sys
from ort_qdq_plugin.memory.buffer import make_buffers
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
large, = make_buffers([1 << 21], "file", sys.argv[1])
small, = make_buffers([1 << 20], "file", sys.argv[1])
print(large.in_file, small.in_file)
"""


def test_a_limit_of_file_sizes_is_not_touched(tmp_path: Path) -> None:
    """Reaching for more is answered by SIGXFSZ, which ends programs that have undone Python's own setting."""
    done = python(TOO_LARGE, tmp_path)
    assert (done.returncode, done.stdout) == (0, "False True\n"), done.stderr


def test_unnamed_space_is_reserved(tmp_path: Path) -> None:
    buffer = make_buffer(SIZE, "file", str(tmp_path))
    assert buffer._file is not None
    status = os.fstat(buffer._file.fileno())
    assert status.st_blocks * 512 >= SIZE
    assert stat.S_IMODE(status.st_mode) == 0o600


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_room_means_memory_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "reserve", no_room)
    before = settled_descriptors()
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        buffer = make_buffer(SIZE, "file", str(tmp_path))
    assert not buffer.in_file
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text
    assert not list(tmp_path.iterdir())
    assert descriptors() == before
    filled(buffer)


def test_no_room_for_a_linkable_one_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "reserve", no_room)
    before = settled_descriptors()
    with pytest.raises(OSError, match="No space left"):
        make_buffer(SIZE, "file", str(tmp_path), linkable=True)
    assert not list(tmp_path.iterdir())
    assert descriptors() == before


def test_all_or_none_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """When the disk fills up at the second of three, one warning is enough, and the first file goes too."""
    reserve, calls = files.reserve, []

    def full_at_second(file: files.File, size: int) -> None:
        calls.append(size)
        if len(calls) == 2:
            no_room()
        reserve(file, size)

    monkeypatch.setattr(files, "reserve", full_at_second)
    before = settled_descriptors()
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        buffers = make_buffers([SIZE] * 3, "file", str(tmp_path))
    assert [buffer.in_file for buffer in buffers] == [False] * 3
    assert len(caplog.records) == 1
    assert not mapped(tmp_path)
    assert descriptors() == before


def test_none_for_none(tmp_path: Path) -> None:
    assert make_buffers([], "file", str(tmp_path)) == []


def test_a_disk_that_is_really_full(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        buffer = make_buffer(SIZE, "file", str(small_disk))
    assert not buffer.in_file
    filled(buffer)
    assert os.statvfs(small_disk).f_bfree == os.statvfs(small_disk).f_blocks, "nothing of it is left there"
    small = make_buffer(1 << 19, "file", str(small_disk))
    assert small.in_file
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("problem", "named", "warned"),
    [
        (errno.EROFS, None, False),
        (errno.EACCES, None, False),
        (errno.ENOSPC, None, True),
        (errno.EROFS, "TMPDIR", True),
        (errno.EROFS, "spill_dir", True),
    ],
)
def test_no_place_at_all_is_no_surprise(
    problem: int, named: str | None, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless a directory was named: then it is told that it is not used."""
    monkeypatch.delenv("TMPDIR", raising=False)
    if named == "TMPDIR":
        monkeypatch.setenv("TMPDIR", "/nowhere")
    refuse(monkeypatch, files, "open_unnamed", problem)
    with caplog.at_level(logging.INFO, "ort_qdq_plugin"):
        filled(make_buffer(SIZE, "auto", "/nowhere" if named == "spill_dir" else None))
    assert [record.levelname for record in caplog.records] == ["WARNING" if warned else "INFO"]


@pytest.mark.parametrize("problem", ["missing", "file", "read-only"])
def test_unusable_directories(tmp_path: Path, problem: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "there"
    if problem == "file":
        folder.write_bytes(b"")
    elif problem == "read-only":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder.mkdir(mode=0o500)
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        assert not make_buffer(SIZE, "file", str(folder)).in_file
    assert len(caplog.records) == 1


def test_no_directory_at_all_means_memory_and_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(os.path, "isdir", lambda _: False)
    refuse(monkeypatch, tempfile, "gettempdir", errno.ENOENT)
    with caplog.at_level(logging.WARNING, "ort_qdq_plugin"):
        assert not make_buffer(SIZE, "file", None).in_file
    assert ["no directory for temporary files" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("order", ["unlinked", "sealed"])
@BOTH_WAYS_TO_NO_NAME
@pytest.mark.needs("unnamed files")
def test_its_file_is_open_until_it_is_written_and_has_no_name(
    tmp_path: Path, order: str, o_tmpfile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not o_tmpfile:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    before = settled_descriptors()
    buffer = make_buffer(SIZE, "file", str(tmp_path), linkable=True)
    buffer.link()
    steps = [buffer.unlink, buffer.seal]
    for step in steps if order == "unlinked" else reversed(steps):
        assert descriptors() > before
        step()
    assert descriptors() == before
    assert mapped(tmp_path)


def test_discarding_does_not_close_what_a_thread_writes_to(tmp_path: Path) -> None:
    """The number could be that of another file by the time it writes."""
    before = settled_descriptors()
    buffer = make_buffer(SIZE, "file", str(tmp_path))
    used = buffer._file
    assert used is not None
    buffer.discard()
    assert not used.closed
    del used
    assert descriptors() == before


def test_an_exception_while_mapping_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> mmap.mmap:
        raise KeyboardInterrupt

    before = settled_descriptors()
    monkeypatch.setattr(mmap, "mmap", refuse)
    for linkable in (False, True):
        with pytest.raises(KeyboardInterrupt):
            make_buffer(SIZE, "file", str(tmp_path), linkable)
    assert not list(tmp_path.iterdir())
    assert descriptors() == before


def test_the_mapping_goes_with_its_last_reference(tmp_path: Path) -> None:
    buffer = make_buffer(SIZE, "file", str(tmp_path))
    buffer.seal()
    view, gone = buffer.array[10:20], weakref.ref(buffer.mapping)
    del buffer
    assert gone() is not None
    assert mapped(tmp_path)
    del view
    assert gone() is None
    assert not mapped(tmp_path)


@pytest.mark.needs("one root")
def test_where_spill_files_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert list(spill_directories(str(tmp_path))) == [str(tmp_path)]
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert next(spill_directories(None)) == "/var/tmp"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert list(spill_directories(None)) == [str(tmp_path)]


# ---- where nothing that is open can be renamed or removed, or opened by those who want no others


@pytest.fixture
def _held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SHARES_FREELY", False)


@pytest.mark.usefixtures("_held")
def test_what_is_packed_cannot_be_written_any_more(tmp_path: Path) -> None:
    before, content = settled_descriptors(), np.arange(SIZE, dtype=np.uint8)
    buffer = buffer_at(str(tmp_path / "packed.bin"), SIZE)
    buffer.write(0, content)
    buffer.finish()
    assert descriptors() == before
    np.testing.assert_array_equal(buffer.array, content)
    with pytest.raises(TypeError):
        buffer.mapping[0] = 1
    buffer.seal()
    buffer.discard()
    assert (tmp_path / "packed.bin").read_bytes() == content.tobytes()


@pytest.mark.usefixtures("_held")
def test_what_onnx_runtime_maps_goes_with_its_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, files, "open_unnamed", errno.EOPNOTSUPP)  # a file has its name from the start
    buffer, content = make_buffer(SIZE, "file", str(tmp_path), linkable=True), np.arange(SIZE, dtype=np.uint8)
    buffer.write(0, content)
    buffer.finish()
    buffer.link()
    assert buffer.path is not None
    assert Path(buffer.path).read_bytes() == content.tobytes()
    assert not mapped(tmp_path)
    with monkeypatch.context() as patched:
        refuse(patched, os, "unlink", errno.EACCES)
        buffer.unlink()
        assert buffer.path is not None
        sweep(str(tmp_path))  # by another process: this one holds the lock
    assert len(list(tmp_path.iterdir())) == 1
    del buffer
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_held")
def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "ort-qdq-0123456789abcdef.spill").write_bytes(b"left")
    buffer = make_buffer(SIZE, "file", str(tmp_path))
    assert "ort-qdq-0123456789abcdef.spill" not in [path.name for path in tmp_path.iterdir()]
    assert buffer.in_file
