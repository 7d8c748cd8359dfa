"""Locks: one holder at a time among threads and processes, however each of them ends."""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin.cache.lock import exclusive, open_lock
from ort_qdq_plugin.system.platform import files
from tests.cache.support import locked_elsewhere, without_locks
from tests.lacking import fcntl
from tests.support import descriptors, python

LONG = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.lock"


def is_free(path: Path) -> bool:
    """Whether another open file of the same path could be locked."""
    with open(path, "ab") as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def test_it_is_held_while_the_block_runs(path: Path) -> None:
    """However it ends."""
    before = descriptors()
    with suppress(KeyboardInterrupt), exclusive(str(path), 0.0) as held:
        assert held is True
        assert not is_free(path)
        raise KeyboardInterrupt
    assert is_free(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert descriptors() == before


@pytest.mark.parametrize("patience", [0.0, 0.3])
def test_patience_has_an_end(path: Path, patience: float) -> None:
    before = descriptors()
    with locked_elsewhere(path):
        start = time.monotonic()
        with pytest.raises(TimeoutError) as refused, exclusive(str(path), patience):
            pass
        waited = time.monotonic() - start
    assert patience <= waited < patience + 5
    assert (refused.value.errno, refused.value.filename) == (errno.ETIMEDOUT, str(path))
    assert descriptors() == before


def test_a_signal_handler_does_not_wait_for_what_it_has_interrupted(path: Path) -> None:
    with exclusive(str(path), 60), pytest.raises(OSError, match="signal handler") as raised, exclusive(str(path), 60):
        pass
    assert raised.value.errno == errno.EDEADLK
    with exclusive(str(path), 60) as held:
        assert held


def test_a_holder_that_is_killed_holds_nothing(path: Path) -> None:
    with locked_elsewhere(path) as process:
        threading.Timer(0.2, process.kill).start()
        with exclusive(str(path), LONG) as held:
            assert held is True
            assert process.wait() != 0


def test_one_thread_at_a_time(path: Path) -> None:
    inside: list[int] = []

    def work(number: int) -> int:
        with exclusive(str(path), LONG):
            inside.append(number)
            time.sleep(0.002)
            most = len(inside)
            inside.remove(number)
            return most

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(work, range(40))) == {1}


COUNTS = """
import sys
from pathlib import Path
from ort_qdq_plugin.cache.lock import exclusive
path, counter = sys.argv[1], Path(sys.argv[2])
for _ in range(100):
    with exclusive(path, 60):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_one_process_at_a_time(path: Path, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    with ThreadPoolExecutor(3) as threads:
        for done in threads.map(lambda _: python(COUNTS, path, counter), range(3)):
            assert done.returncode == 0, done.stderr
    assert counter.read_text() == "300"


FORKS = """
import fcntl, os, sys
from ort_qdq_plugin.cache.lock import exclusive
path, (end, begin) = sys.argv[1], os.pipe()
with exclusive(path, 0.0):
    child = os.fork()
    if not child:
        os.close(begin)
        os.read(end, 1)
        os._exit(0)
fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
os.close(begin)
os.waitpid(child, 0)
"""


def test_a_child_that_was_forked_meanwhile_holds_nothing(path: Path) -> None:
    done = python(FORKS, path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("exists", [False, True])
def test_a_file_that_is_removed_meanwhile_is_not_what_is_locked(path: Path, exists: bool) -> None:
    """Or replaced by another one."""

    def wait() -> bool:
        with exclusive(str(path), LONG) as held:
            return held and not is_free(path)

    with locked_elsewhere(path) as process, ThreadPoolExecutor(1) as thread:
        found = thread.submit(wait)
        time.sleep(0.1)
        assert not found.done()
        path.unlink()
        if exists:
            path.touch()
        assert process.stdin is not None
        process.stdin.close()
        assert found.result(LONG)


def test_a_file_system_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)

    def held(_: object) -> bool:
        with exclusive(str(path), 0) as is_held:
            return is_held

    with exclusive(str(path), 0) as first, ThreadPoolExecutor(1) as another:
        assert [first, *another.map(held, [None])] == [False, False]


def test_other_errors_are_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch, errno.EIO)
    before = descriptors()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), exclusive(str(path), LONG):
        pass
    assert descriptors() == before


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")


def folder(path: Path) -> None:
    path.mkdir()


def anothers(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    path.touch()
    os.chown(path, 12345, -1)


@pytest.mark.parametrize("kind", [fifo, link, folder, anothers])
def test_what_is_no_file_of_ones_own(path: Path, kind: Callable[[Path], None]) -> None:
    """It is not waited for."""
    kind(path)
    before = descriptors()
    for use in (lambda: exclusive(str(path), LONG).__enter__(), lambda: open_lock(str(path))):
        with pytest.raises(files.NotRegularError, match=path.name):
            use()
    assert descriptors() == before
    assert not (path.parent / "elsewhere").exists()


@pytest.mark.needs("os.open")
def test_something_else_may_take_the_place_of_a_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at it and opening it."""
    path.touch()
    real = os.open

    def replaced(*args: Any, **kwargs: Any) -> int:
        path.unlink()
        os.mkfifo(path)
        monkeypatch.undo()
        return real(*args, **kwargs)

    monkeypatch.setattr(os, "open", replaced)
    before = descriptors()
    with pytest.raises(files.NotRegularError):
        open_lock(str(path))
    assert descriptors() == before


def test_no_folder_for_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), exclusive(str(tmp_path / "nowhere" / "lock"), 0.0):
        pass
