"""Packed buffers: where they are, what is left of them, and what happens when there is no room."""

from __future__ import annotations

import errno
import gc
import logging
import mmap
import os
import stat
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ort_qdq_plugin.memory import buffer as buffer_module
from ort_qdq_plugin.memory.buffer import PackedBuffer, make_buffers, spill_directories, sweep
from tests.support import descriptors, mapped, python, settled_descriptors

SIZE = 3 << 20


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
    assert buffer.path is None
    if linkable:
        buffer.link()
        assert buffer.path is not None
    filled(buffer)
    assert bool(mapped(tmp_path)) == buffer.in_file
    if buffer.path is not None:
        assert Path(buffer.path).read_bytes() == buffer.array.tobytes()
    buffer.discard()
    assert not list(tmp_path.iterdir())


def test_small_ones_are_not_worth_a_file(tmp_path: Path) -> None:
    assert not make_buffer(1000, "auto", str(tmp_path)).in_file
    assert make_buffer(1000, "file", str(tmp_path)).in_file


def test_no_name_at_any_time(tmp_path: Path) -> None:
    buffer = make_buffer(SIZE, "file", str(tmp_path))
    assert not list(tmp_path.iterdir())
    assert mapped(tmp_path)
    del buffer
    assert not mapped(tmp_path)


def test_without_o_tmpfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system does not know O_TMPFILE the name goes at once."""
    monkeypatch.delattr(os, "O_TMPFILE")
    buffer = make_buffer(SIZE, "file", str(tmp_path))
    assert buffer.in_file
    assert not list(tmp_path.iterdir())
    filled(buffer)


@pytest.mark.parametrize("o_tmpfile", [True, False])
def test_a_linked_one_is_private_and_goes_with_unlink(
    tmp_path: Path, o_tmpfile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not o_tmpfile:
        monkeypatch.delattr(os, "O_TMPFILE")
    buffer = make_buffer(SIZE, "memory", str(tmp_path), linkable=True)
    assert bool(list(tmp_path.iterdir())) == (not o_tmpfile)
    buffer.link()
    (path,) = tmp_path.iterdir()
    assert str(path) == buffer.path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_blocks * 512 >= SIZE, "reserved, not sparse"
    buffer.unlink()
    buffer.unlink()
    assert not path.exists()


def test_somebody_else_may_remove_the_name(tmp_path: Path) -> None:
    buffer = make_buffer(SIZE, "file", str(tmp_path), linkable=True)
    buffer.link()
    assert buffer.path is not None
    os.unlink(buffer.path)
    buffer.discard()
    assert buffer.path is None


def test_memory_cannot_be_linked(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="memory"):
        make_buffer(SIZE, "memory", str(tmp_path)).link()


ORPHAN = """
import os, subprocess, sys
from ort_qdq_plugin.memory.buffer import make_buffers
if sys.argv[2] == "alone":
    subprocess.Popen = lambda *_, **__: (_ for _ in ()).throw(OSError("no process can be started"))
(buffer,) = make_buffers([1 << 20], "file", sys.argv[1], True)
buffer.link()
print(buffer.path, flush=True)
os.kill(os.getpid(), 9)
"""


def settled(folder: Path, wanted: int) -> list[Path]:
    """What is in `folder` once there are so many entries, or after two seconds."""
    end = time.monotonic() + 2
    while len(list(folder.iterdir())) != wanted and time.monotonic() < end:
        time.sleep(0.01)
    return list(folder.iterdir())


def test_a_named_file_goes_with_its_process(tmp_path: Path) -> None:
    path = Path(python(ORPHAN, tmp_path, "watched").stdout.strip())
    assert path.parent == tmp_path
    assert settled(tmp_path, 0) == []


def children() -> list[str]:
    """Processes that this one has started and not waited for."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_no_process_stays_behind(tmp_path: Path) -> None:
    before, open_before = children(), settled_descriptors()
    buffers = make_buffers([SIZE] * 3, "file", str(tmp_path), linkable=True)
    assert len(children()) == len(before) + 1
    for buffer in buffers[:2]:
        buffer.link()
    for buffer in buffers:
        assert len(children()) == len(before) + 1
        buffer.discard()
    assert children() == before
    del buffer, buffers
    assert descriptors() == open_before


def test_a_buffer_that_nobody_discards_takes_its_file_along(tmp_path: Path) -> None:
    before, open_before = children(), settled_descriptors()
    buffer = make_buffer(SIZE, "file", str(tmp_path), linkable=True)
    buffer.link()
    assert list(tmp_path.iterdir())
    del buffer
    assert not list(tmp_path.iterdir())
    assert (children(), descriptors()) == (before, open_before)


FORKED = """
import os, sys, time
from ort_qdq_plugin.memory.buffer import make_buffers
buffers = make_buffers([1 << 20], "file", sys.argv[1], True)
buffers[0].link()
started, waiting = os.pipe()
child = os.fork()
if child == 0:
    buffers.clear()
    os.write(waiting, b"x")
    time.sleep(float(sys.argv[2]))
    os._exit(0)
os.read(started, 1)
assert os.path.exists(buffers[0].path)
if sys.argv[3] == "killed":
    os.close(1), os.close(2)
    os.kill(os.getpid(), 9)
buffers[0].discard()
os.kill(child, 9)
print(os.listdir(sys.argv[1]))
"""


def test_a_forked_child_leaves_the_file_to_its_parent(tmp_path: Path) -> None:
    done = python(FORKED, tmp_path, 60, "ends")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_forked_child_does_not_keep_the_file_of_a_killed_parent(tmp_path: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path), "3", "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert started.wait(60) == -9
    assert settled(tmp_path, 0) == []


def test_sweeping_takes_what_nobody_holds(tmp_path: Path) -> None:
    alive = make_buffer(SIZE, "file", str(tmp_path), linkable=True)
    alive.link()
    alive.seal()
    orphan = Path(python(ORPHAN, tmp_path, "alone").stdout.strip())
    assert orphan.parent == tmp_path
    assert orphan.exists()
    sweep(str(tmp_path))
    assert [str(path) for path in tmp_path.iterdir()] == [alive.path]


def test_sweeping_leaves_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "other.spill").write_bytes(b"somebody else's")
    (tmp_path / "target").write_bytes(b"somebody else's")
    (tmp_path / "ort-qdq-link.spill").symlink_to(tmp_path / "target")
    os.link(tmp_path / "target", tmp_path / "ort-qdq-hard.spill")
    (tmp_path / "ort-qdq-folder.spill").mkdir()
    os.mkfifo(tmp_path / "ort-qdq-fifo.spill")
    before = sorted(tmp_path.iterdir())
    sweep(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == before


def test_sweeping_leaves_the_files_of_other_users(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    other = tmp_path / "ort-qdq-other.spill"
    other.write_bytes(b"")
    os.chown(other, 54321, 54321)
    sweep(str(tmp_path))
    assert other.exists()


@pytest.mark.parametrize("where", ["itself", "above"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o757])
def test_no_name_where_others_could_exchange_the_file(tmp_path: Path, mode: int, where: str) -> None:
    folder = tmp_path / "above" / "below"
    folder.mkdir(parents=True)
    open_to_others = folder if where == "itself" else folder.parent
    open_to_others.chmod(mode)
    with pytest.raises(OSError, match=f"sticky.*{open_to_others}'"):
        make_buffer(SIZE, "file", str(folder), linkable=True)
    assert make_buffer(SIZE, "file", str(folder)).in_file, "without a name nobody can reach it"
    open_to_others.chmod(0o1777)
    make_buffer(SIZE, "file", str(folder), linkable=True).discard()
    assert not list(folder.iterdir())


def test_no_name_in_the_directory_of_another_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give directories away")
    os.chown(tmp_path, 54321, 54321)
    with pytest.raises(OSError, match=f"another user.*{tmp_path}'"):
        make_buffer(SIZE, "file", str(tmp_path), linkable=True)


def test_the_next_directory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsafe, safe = tmp_path / "unsafe", tmp_path / "safe"
    for folder in (unsafe, safe):
        folder.mkdir(mode=0o700)
    unsafe.chmod(0o777)
    monkeypatch.setattr(buffer_module, "spill_directories", lambda _: [str(unsafe), str(safe)])
    buffer = make_buffer(SIZE, "file", None, linkable=True)
    buffer.link()
    assert buffer.path is not None
    assert Path(buffer.path).parent == safe
    buffer.discard()


def test_sweeps_and_named_files_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without O_TMPFILE a file has its name before it is locked: one that a sweep takes in between is made anew."""
    monkeypatch.delattr(os, "O_TMPFILE")
    opened = os.open
    swept: list[Any] = []

    def swept_at_once(path: Any, flags: int, *mode: int, **named: int) -> int:
        descriptor = opened(path, flags, *mode, **named)
        if flags & os.O_CREAT and not swept:
            swept.append(path)
            sweep(str(tmp_path))
        return descriptor

    monkeypatch.setattr(os, "open", swept_at_once)
    buffer = make_buffer(SIZE, "file", str(tmp_path), linkable=True)
    assert swept
    sweep(str(tmp_path))
    assert [str(path) for path in tmp_path.iterdir()] == [buffer.path]
    buffer.discard()
    assert not list(tmp_path.iterdir())


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
    monkeypatch.setattr(os, "posix_fallocate", no_room)
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
    monkeypatch.setattr(os, "posix_fallocate", no_room)
    before = settled_descriptors()
    with pytest.raises(OSError, match="No space left"):
        make_buffer(SIZE, "file", str(tmp_path), linkable=True)
    assert not list(tmp_path.iterdir())
    assert descriptors() == before


def test_all_or_none_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """When the disk fills up at the second of three, one warning is enough, and the first file goes too."""
    reserve, calls = os.posix_fallocate, []

    def full_at_second(descriptor: int, offset: int, size: int) -> None:
        calls.append(size)
        if len(calls) == 2:
            no_room()
        reserve(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full_at_second)
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


def test_where_spill_files_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert spill_directories(str(tmp_path)) == [str(tmp_path)]
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert spill_directories(None)[0] == "/var/tmp"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert spill_directories(None) == [str(tmp_path)]
