"""Spill files that have a name: whose they are, who removes them, and where they may lie."""

import fcntl
import os
import stat
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin.memory import buffer as buffer_module
from ort_qdq_plugin.memory.buffer import make_buffers
from ort_qdq_plugin.memory.named_files import new_names, open_named, sweep
from tests.memory.test_buffer import make_buffer
from tests.support import descriptors, python, settled_descriptors

SIZE = 3 << 20


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


# What buffers do with names, asked of the names themselves


def test_names_are_new_and_of_one_remover(tmp_path: Path) -> None:
    before = children()
    with ExitStack() as undo:
        names = list(new_names(str(tmp_path), 3, undo))
        assert len({name.path for name in names}) == 3
        assert {Path(name.path).parent for name in names} == {tmp_path}
        assert len({id(name.remover) for name in names}) == 1
        assert len(children()) == len(before) + 1
    assert children() == before
    assert not list(tmp_path.iterdir()), "a name makes no file"


def test_the_remover_ends_with_the_last_of_its_files(tmp_path: Path) -> None:
    before = children()
    with ExitStack() as undo:
        first, second = new_names(str(tmp_path), 2, undo)
        first.remover.gone(first.path)
        first.remover.gone(first.path)
        assert len(children()) == len(before) + 1
        second.remover.gone(second.path)
        assert children() == before


def test_an_open_file_is_private_and_locked(tmp_path: Path) -> None:
    with ExitStack() as undo:
        (name,) = new_names(str(tmp_path), 1, undo)
        file = open_named(name)
        assert stat.S_IMODE(os.stat(name.path).st_mode) == 0o600
        with open(name.path, "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sweep(str(tmp_path))
        assert os.path.exists(name.path)
        file.close()
        sweep(str(tmp_path))
        assert not os.path.exists(name.path)


def test_sweeping_takes_names_of_spill_files_only(tmp_path: Path) -> None:
    folder = tmp_path / "[a]*"
    folder.mkdir()
    kept = {"ort-qdq-1.data", "other-1.spill", "ort-qdq-1.spill.old"}
    for name in (*kept, "ort-qdq-1.spill"):
        (folder / name).write_bytes(b"")
    sweep(str(folder))
    assert {path.name for path in folder.iterdir()} == kept
