"""Files of entries on their way to the disk."""

import os
import stat
from pathlib import Path

import pytest

from ort_qdq_plugin.cache.write_back import wait_until_on_disk, write_back
from tests.support import python


def written_back(folder: Path, names: list[str]) -> list[str]:
    """What was discarded."""
    discarded: list[str] = []
    write_back(str(folder), names, "done", discarded.append)
    wait_until_on_disk()
    return discarded


def test_the_marker_comes_when_all_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_until_on_disk()  # what other tests have written
    synced: list[bool] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((tmp_path / "done").exists())
        real(descriptor)

    wait_until_on_disk()  # what earlier tests have begun
    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    assert written_back(tmp_path, ["a", "b"]) == []
    assert synced == [False, False]
    assert stat.S_IMODE((tmp_path / "done").stat().st_mode) == 0o400


@pytest.mark.parametrize("threads", ["none", "lost"])
def test_without_a_thread(tmp_path: Path, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the interpreter ends there can be none; an interrupt may come just before it is started."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr("_thread.start_new_thread", refuse if threads == "none" else lambda *_: None)
    (tmp_path / "a").write_bytes(b"x")
    assert written_back(tmp_path, ["a"]) == []
    assert (tmp_path / "done").exists()


FORKS = """
import os, sys, threading
from ort_qdq_plugin.cache import write_back
begun, end = threading.Event(), threading.Event()
def fsync(_):
    begun.set()
    end.wait()
os.fsync = fsync
write_back.write_back(sys.argv[1], ["a"], "done", print)
begun.wait()
child = os.fork()
if not child:
    write_back.wait_until_on_disk()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
end.set()
write_back.wait_until_on_disk()
"""


@pytest.mark.needs("fork")
def test_a_child_does_not_wait_for_its_parents_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    done = python(FORKS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").exists()


def test_a_folder_that_was_removed_meanwhile(tmp_path: Path) -> None:
    assert written_back(tmp_path / "gone", ["a"]) == []
    assert written_back(tmp_path, ["missing"]) == []
    assert list(tmp_path.iterdir()) == []
