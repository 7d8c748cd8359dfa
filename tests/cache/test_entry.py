"""Entries: which of them are used, what is still theirs, and what is written for them."""

import logging
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin.cache.entry import MANIFEST, MODEL, SHARED_MODEL, describe, digest_at, write_file
from ort_qdq_plugin.cache.manifest import digest_of, parse_manifest
from ort_qdq_plugin.cache.store import Store
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from ort_qdq_plugin.system.platform import host
from tests.cache import support
from tests.cache.support import KEY, PACKED, is_found, locked_by_others, make_entry, removed, replaced, writable_by_all

OTHER_USER = 12345


def group_writable(path: Path) -> None:
    path.chmod(path.stat().st_mode | stat.S_IWGRP)


def given_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, OTHER_USER, -1)


def symlink(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o400)


def subfolder(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


def with_more(path: Path) -> None:
    (path / "more").touch(0o400)


def endless(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, 1 << 40)


NOT_PRIVATE = [group_writable, writable_by_all, given_away, symlink]
CHANGES = [support.longer, support.empty, removed, fifo, subfolder, *NOT_PRIVATE]


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in (MANIFEST, MODEL, PACKED) for how in (*CHANGES, endless)]
    + [("", how) for how in (*NOT_PRIVATE, with_more)],
)
@pytest.mark.usefixtures("shared_group")
def test_an_entry_that_is_not_what_it_was(store: Store, entry: Path, name: str, how: Callable[[Path], None]) -> None:
    assert is_found(store)
    how(entry / name)
    assert not is_found(store)


@pytest.mark.parametrize(("name", "unverified"), [(MANIFEST, False), (MODEL, False), (PACKED, True)])
def test_a_byte_that_is_not_what_it_was(store: Store, entry: Path, name: str, unverified: bool) -> None:
    path = entry / name
    path.chmod(0o600)
    first, *rest = path.read_bytes()
    path.write_bytes(bytes([first ^ 1, *rest]))
    assert is_found(store) == unverified
    assert not is_found(store, verify=True)


def test_an_entry_of_another_key(store: Store, entry: Path) -> None:
    entry.rename(entry.with_name("other"))
    assert store.find("other", verify=False) is None


def test_an_entry_that_is_being_removed(store: Store, entry: Path) -> None:
    with locked_by_others(entry, shared=False):
        assert not is_found(store)
    assert is_found(store)


def test_why_it_is_made_anew_is_logged(store: Store, entry: Path, caplog: pytest.LogCaptureFixture) -> None:
    support.longer(entry / PACKED)
    with caplog.at_level(logging.INFO):
        assert not is_found(store)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert str(entry) in record.message
    assert PACKED in record.message


@pytest.mark.parametrize("how", [support.rewritten, support.longer, os.utime, removed, replaced])
def test_a_source_that_is_not_what_it_was(store: Store, entry: Path, source: Path, how: Callable[[Path], None]) -> None:
    how(source)
    assert not is_found(store)


def test_content_that_was_not_recorded_cannot_be_verified(store: Store, source: Path) -> None:
    make_entry(store, source=source, verify=False)
    assert is_found(store)
    assert not is_found(store, verify=True)


def rewrite_manifest(folder: Path, **fields: Any) -> None:
    manifest = parse_manifest((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).unlink()
    write_file(str(folder / MANIFEST), manifest._replace(**fields).to_bytes())


@pytest.mark.parametrize("field", ["key", "sources", "files"])
@pytest.mark.parametrize("value", [7, None, "text", [[7]], [["a\0b", [1, 2, 3, 4, 5], [], "", ""]], [["a", 7, ""]]])
def test_a_manifest_that_says_other_things(store: Store, entry: Path, field: str, value: Any) -> None:
    rewrite_manifest(entry, **{field: value})
    assert not is_found(store)


def test_before_it_is_on_disk_it_does_not_survive_a_restart(
    store: Store, entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "boot_id", lambda: "the next one")
    assert is_found(store)
    (entry / "on-disk").unlink()
    assert not is_found(store)
    monkeypatch.undo()
    assert is_found(store)


# ---- entries that others open by path


def touched(path: Path) -> None:
    path.chmod(0o600)
    os.utime(path, (0, 0))


def exchanged(path: Path) -> None:
    """The whole entry is one of the same content."""
    other = path.with_name("other")
    shutil.copytree(path, other)
    path.rename(path.with_name("old"))
    other.rename(path)


@pytest.mark.parametrize(
    ("name", "how"),
    [pytest.param(name, replaced, marks=pytest.mark.needs("free names")) for name in (MANIFEST, MODEL, PACKED)]
    + [pytest.param(name, removed, marks=pytest.mark.needs("removed names")) for name in (MANIFEST, MODEL, PACKED)]
    + [(MODEL, touched), (PACKED, touched), ("", exchanged)]
    + [pytest.param("", shutil.rmtree, marks=pytest.mark.needs("removed names"))],
)
def test_an_entry_is_current_until_something_of_it_is_replaced(
    store: Store, entry: Path, name: str, how: Callable[[Path], None]
) -> None:
    found = store.find(KEY, verify=False)
    assert found is not None
    with closing(found):
        wait_until_on_disk()
        assert found.is_current()
        how(entry / name)
        assert not found.is_current()
        assert found.has_current_sources()


@pytest.mark.parametrize("how", [support.rewritten, removed, replaced])
def test_the_model_of_an_entry_may_be_replaced(store: Store, entry: Path, source: Path, how: Callable[[Path], None]) -> None:
    found = store.find(KEY, verify=False)
    assert found is not None
    with closing(found):
        assert found.has_current_sources()
        how(source)
        assert (found.is_current(), found.has_current_sources()) == (True, False)


# ---- files of entries


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
