"""Spill files that have a name: whose they are, who removes them, and where they may lie."""

import errno
import os
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import ort_qdq_plugin
from ort_qdq_plugin.memory import buffer as buffer_module
from ort_qdq_plugin.memory.buffer import make_buffers
from ort_qdq_plugin.memory.named_files import new_names, open_named, sweep
from ort_qdq_plugin.system.forks import fork_lock
from ort_qdq_plugin.system.threads import Work
from tests.interrupting import Left, interrupted, settled
from tests.lacking import fcntl
from tests.memory.test_buffer import make_buffer
from tests.support import BOTH_WAYS_TO_NO_NAME, python, refuse

SIZE = 3 << 20
PACKAGE = os.path.dirname(ort_qdq_plugin.__file__)


@pytest.mark.needs("unnamed files")
@BOTH_WAYS_TO_NO_NAME
def test_a_linked_one_is_private_and_goes_with_unlink(
    tmp_path: Path, o_tmpfile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not o_tmpfile:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
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


@pytest.mark.needs("a shell")
def test_a_named_file_goes_with_its_process(tmp_path: Path) -> None:
    before = Left.now(tmp_path)
    path = Path(python(ORPHAN, tmp_path, "watched").stdout.strip())
    assert path.parent == tmp_path
    assert settled(tmp_path, before) == before


@pytest.mark.needs("a shell")
def test_no_process_stays_behind(tmp_path: Path) -> None:
    before = Left.at_rest(tmp_path)
    buffers = make_buffers([SIZE] * 3, "file", str(tmp_path), linkable=True)
    for buffer in buffers[:2]:
        buffer.link()
    for buffer in buffers:
        left = Left.now(tmp_path)
        assert (len(left.children), left.threads) == (len(before.children) + 1, before.threads + 1)
        buffer.discard()
    assert Left.now(tmp_path).children == before.children, "when discarding is done, not later"
    del buffer, buffers
    assert settled(tmp_path, before) == before


def test_a_buffer_that_nobody_discards_takes_its_file_along(tmp_path: Path) -> None:
    before = Left.at_rest(tmp_path)
    buffer = make_buffer(SIZE, "file", str(tmp_path), linkable=True)
    buffer.link()
    assert list(tmp_path.iterdir())
    del buffer
    assert not list(tmp_path.iterdir())
    assert settled(tmp_path, before) == before


@pytest.mark.parametrize("shell", ["sh", "none"])
@BOTH_WAYS_TO_NO_NAME
def test_an_interrupt_at_any_place_leaves_nothing(
    tmp_path: Path, o_tmpfile: bool, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file, no shell, no zombie; what a finalizer could not remove if there is no shell, sweeping can."""
    if not o_tmpfile:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    if shell == "none":
        refuse(monkeypatch, subprocess, "Popen", errno.EAGAIN)

    def work() -> None:
        buffer = make_buffer(1 << 12, "file", str(tmp_path), linkable=True)
        buffer.link()
        buffer.seal()
        buffer.discard()

    before, number = Left.at_rest(tmp_path), 1
    while interrupted(number, work, lambda path: path.startswith(PACKAGE)):
        if shell == "none":
            sweep(str(tmp_path))
        assert settled(tmp_path, before) == before, number
        number += 1
    assert number > 50


FORKED = """
import os, subprocess, sys, time
from ort_qdq_plugin.memory.buffer import make_buffers
if sys.argv[3] == "alone":
    subprocess.Popen = lambda *_, **__: (_ for _ in ()).throw(OSError("no process can be started"))
buffers = make_buffers([1 << 20], "file", sys.argv[1], True)
buffers[0].link()
started, waiting = os.pipe()
child = os.fork()
if child == 0:
    if sys.argv[3] != "alone":
        buffers.clear()
    os.write(waiting, b"x")
    time.sleep(float(sys.argv[2]))
    os._exit(0)
os.read(started, 1)
assert os.path.exists(buffers[0].path)
if sys.argv[3] != "ends":
    os.close(1), os.close(2)
    os.kill(os.getpid(), 9)
buffers[0].discard()
os.kill(child, 9)
print(os.listdir(sys.argv[1]))
"""


def test_a_forked_child_leaves_the_file_to_its_parent(tmp_path: Path) -> None:
    done = python(FORKED, tmp_path, 60, "ends")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("shell", ["killed", "alone"])
@pytest.mark.needs("a shell")
def test_a_forked_child_does_not_keep_the_file_of_a_killed_parent(tmp_path: Path, shell: str) -> None:
    before = Left.now(tmp_path)
    started = subprocess.Popen(
        [sys.executable, "-c", FORKED, str(tmp_path), "3", shell], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert started.wait(60) == -9
    if shell == "alone":
        sweep(str(tmp_path))
    assert settled(tmp_path, before) == before


@pytest.mark.needs("a shell")
def test_no_fork_while_the_shell_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child would keep open what says that the shell has started, and the load would wait for the child."""
    free: list[bool] = []

    def popen(*_: object, **__: object) -> None:
        work = Work(lambda: fork_lock.acquire(blocking=False))
        work.start()
        work.wait()
        free.append(work.result)
        raise OSError

    monkeypatch.setattr(subprocess, "Popen", popen)
    make_buffer(SIZE, "file", str(tmp_path), linkable=True).discard()
    assert free == [False]


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
@pytest.mark.usefixtures("shared_group")
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


@pytest.mark.needs("modes")
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


@pytest.mark.needs("os.open")
@pytest.mark.parametrize("step", ["made", "opened to be locked"])
def test_sweeps_and_named_files_do_not_meet(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without O_TMPFILE a file has its name before it is locked: one that a sweep takes in between is made anew."""
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    opened = os.open
    swept: list[Any] = []

    def swept_at_once(path: Any, flags: int, *mode: int, **named: int) -> int:
        descriptor = opened(path, flags, *mode, **named)
        if not swept and str(path).endswith(".spill") and bool(flags & os.O_CREAT) == (step == "made"):
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


def shells() -> int:
    """Processes that this one has started and not waited for."""
    return len(Left.now(Path()).children)


def test_names_are_new_and_of_one_remover(tmp_path: Path) -> None:
    before = shells()
    with ExitStack() as undo:
        names = list(new_names(str(tmp_path), 3, undo))
        assert len({name.path for name in names}) == 3
        assert {Path(name.path).parent for name in names} == {tmp_path}
        assert len({id(name.remover) for name in names}) == 1
        names[0].remover.wait_until_ready()
        assert shells() == before + 1
    assert shells() == before
    assert not list(tmp_path.iterdir()), "a name makes no file"


@pytest.mark.needs("a shell")
def test_the_remover_ends_with_the_last_of_its_files(tmp_path: Path) -> None:
    before = shells()
    with ExitStack() as undo:
        first, second = new_names(str(tmp_path), 2, undo)
        first.remover.wait_until_ready()
        first.remover.gone(first.path)
        first.remover.gone(first.path)
        assert shells() == before + 1
        second.remover.gone(second.path)
        assert shells() == before


@pytest.mark.needs("a shell")
def test_without_a_thread_there_is_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the interpreter ends, for instance."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    before = shells()
    buffer = make_buffer(SIZE, "file", str(tmp_path), linkable=True)
    buffer.link()
    assert shells() == before
    buffer.discard()
    assert not list(tmp_path.iterdir())


def test_an_open_file_is_private_and_locked(tmp_path: Path) -> None:
    with ExitStack() as undo:
        (name,) = new_names(str(tmp_path), 1, undo)
        file, lock = open_named(name)
        assert stat.S_IMODE(os.stat(name.path).st_mode) == 0o600
        file.close()
        with open(name.path, "rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sweep(str(tmp_path))
        assert os.path.exists(name.path)
        lock.close()
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
