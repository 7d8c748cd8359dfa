"""Files of entries: how they are written, and what is said of them."""

import os
import stat
from pathlib import Path

import pytest

from ort_qdq_plugin.cache.manifest import digest_of
from ort_qdq_plugin.cache.store import MODEL, SHARED_MODEL, describe, digest_at, write_file
from tests.cache.support import PACKED


def test_files_are_written_once_and_read_only(tmp_path: Path) -> None:
    data, path = os.urandom(1 << 20), tmp_path / "file"
    write_file(str(path), data)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert digest_at(str(path)) == digest_of(data)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for taken in ("file", "link"):
        with pytest.raises(FileExistsError):
            write_file(str(tmp_path / taken), b"more")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("verify", [False, True])
def test_what_is_said_of_files(tmp_path: Path, verify: bool) -> None:
    names = [MODEL, SHARED_MODEL, PACKED]
    for name in names:
        write_file(str(tmp_path / name), name.encode())
    described = [tuple(file) for file in describe(str(tmp_path), names, verify)]
    # The models themselves are small.
    assert described == [(name, len(name), digest_of(name.encode()) if verify or name != PACKED else "") for name in names]
