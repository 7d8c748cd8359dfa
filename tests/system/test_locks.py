"""Locks on open files and folders: whom they exclude, and who has them after a fork."""

import errno
import os
import signal
from contextlib import closing
from pathlib import Path

import pytest

from ort_qdq_plugin.system.platform import files
from tests.cache.support import without_locks
from tests.support import python


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.touch()
    return path


def test_shared_holders_exclude_only_the_exclusive_one(path: Path) -> None:
    with (
        files.open_to_read(str(path)) as one,
        files.open_to_read(str(path)) as other,
        closing(files.Folder(str(path.parent))) as folder,
    ):
        assert files.try_lock(one, shared=True) is True
        assert files.try_lock(other, shared=True) is True
        assert files.try_lock(other) is False
        files.unlock(one)
        assert files.try_lock(other) is True
        assert files.try_lock(one, shared=True) is False
        files.lock(folder)
        with closing(files.Folder(str(path.parent))) as again:
            assert files.try_lock(again) is False


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("problem", "said"),
    [
        *((problem, None) for problem in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)),
        *((problem, False) for problem in (errno.EWOULDBLOCK, errno.EACCES)),
    ],
)
def test_why_a_file_cannot_be_locked(
    path: Path, problem: int, said: bool | None, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, problem)
    with files.open_to_read(str(path)) as file:
        assert files.try_lock(file, shared=shared) is said
        with pytest.raises(OSError, match=os.strerror(problem)):
            files.lock(file)
        without_locks(monkeypatch, errno.EIO)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            files.try_lock(file, shared=shared)


LOCKED = """
import os, signal, sys
from ort_qdq_plugin.system.platform import files
path, end = sys.argv[1:]
file = files.open_to_write(path)
assert files.try_lock(file, shared=end == "shared")
begun, waiting = os.pipe()
child = os.fork()
if not child:
    os.close(1)
    os.close(2)
    if end == "unlocked":
        files.unlock(file)
        file.close()
    os.write(waiting, b"x")
    signal.pause()
os.read(begun, 1)
if end == "killed":
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
free = files.try_lock(files.open_to_write(path))
file.close()
free_afterwards = files.try_lock(files.open_to_write(path))
os.kill(child, signal.SIGKILL)
print(free, free_afterwards)
"""


@pytest.mark.parametrize(
    ("end", "said"), [("closed", "False True"), ("unlocked", "False True"), ("shared", "False False"), ("killed", "")]
)
def test_a_lock_is_its_process_own(path: Path, end: str, said: str) -> None:
    """A child that was forked meanwhile neither holds it on nor gives it back; one that is shared is shared with it."""
    done = python(LOCKED, path, end)
    if end == "killed":
        with files.open_to_write(str(path)) as file:
            assert files.try_lock(file) is True
        os.kill(int(done.stdout), signal.SIGKILL)
    else:
        assert (done.returncode, done.stdout) == (0, f"{said}\n"), done.stderr
