"""Files of entries on their way to the disk."""

import os
import stat
from pathlib import Path

import pytest

from ort_qdq_plugin.cache.write_back import wait_until_on_disk, write_back


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


def test_a_folder_that_was_removed_meanwhile(tmp_path: Path) -> None:
    assert written_back(tmp_path / "gone", ["a"]) == []
    assert written_back(tmp_path, ["missing"]) == []
    assert list(tmp_path.iterdir()) == []
