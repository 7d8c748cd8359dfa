"""The store: what is written is found, and nothing else is."""

import errno
import fcntl
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ort_qdq_plugin.cache import store as store_module
from ort_qdq_plugin.cache.manifest import parse_manifest
from ort_qdq_plugin.cache.store import LOCK, MANIFEST, MODEL, Store
from ort_qdq_plugin.cache.store import write_file as write
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from ort_qdq_plugin.system.platform import host
from tests.cache import support
from tests.cache.support import KEY, PACKED, locked_elsewhere, make_entry, removed, replaced, writable_by_all
from tests.support import descriptors, refuse

OTHER_USER = 12345


@pytest.fixture
def entry(store: Store, source: Path) -> Path:
    """The folder of a complete entry, of which every file is on disk."""
    folder = make_entry(store, source=source)
    support.written_back(Path(store.folder))
    return folder


@contextmanager
def locked_by_others(entry: Path, *, shared: bool) -> Iterator[None]:
    """While the block runs, another descriptor holds a lock on the entry; BlockingIOError if it cannot have it."""
    with open(entry / MANIFEST, "rb") as manifest:
        fcntl.flock(manifest, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        yield


def in_use(entry: Path) -> bool:
    with locked_by_others(entry, shared=True):
        pass  # which others may as well
    try:
        with locked_by_others(entry, shared=False):
            return False
    except BlockingIOError:
        return True


def is_found(store: Store, *, verify: bool = False) -> bool:
    """Whether there is an entry that can be used; either way, nothing stays open."""
    wait_until_on_disk()
    before = descriptors()
    found = store.find(KEY, verify=verify) is not None
    assert descriptors() == before
    return found


def test_its_directory_is_made_and_private(tmp_path: Path, source: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    store = Store(str(tmp_path / "link" / "of" / "two"))
    assert store.folder == str((tmp_path / "of" / "two").resolve())
    assert stat.S_IMODE(os.stat(store.folder).st_mode) == 0o700
    assert store.path_of(KEY) == f"{store.folder}/{KEY}"
    with pytest.raises(FileExistsError):
        Store(str(source))


def test_nothing_is_found_where_nothing_is(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert not is_found(store)
    assert not caplog.records


@pytest.mark.parametrize("verify", [False, True])
def test_what_is_committed_is_found(store: Store, entry: Path, verify: bool) -> None:
    """It is held, and its lock says when it was used."""
    lock = entry.with_name(KEY + LOCK)
    lock.touch()
    os.utime(lock, (0, 0))
    found = store.find(KEY, verify=verify)
    assert found is not None
    assert (found.path, found.manifest.key) == (str(entry), KEY)
    contents = {name: file.read() for name, file in found.files.items()}
    assert contents == {name: (entry / name).read_bytes() for name in (MODEL, PACKED)}
    assert not any(os.get_inheritable(file.fileno()) for file in (*found.files.values(), found.holder))
    assert lock.stat().st_mtime > 0
    assert in_use(entry)
    del found
    assert not in_use(entry)


# ---- what is not used


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
    [(name, how) for name in (MANIFEST, MODEL, PACKED) for how in CHANGES]
    + [("", how) for how in (*NOT_PRIVATE, with_more)],
)
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
    write(str(folder / MANIFEST), manifest._replace(**fields).to_bytes())


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


# ---- making entries


def test_an_unfinished_entry_is_not_found(store: Store) -> None:
    path = store.begin(KEY)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert os.path.dirname(path) == store.folder
    assert not os.path.exists(store.path_of(KEY))
    assert not is_found(store)


@pytest.mark.parametrize("obstacle", ["file", "link", "nested folder"])
def test_whatever_is_in_the_way_goes(store: Store, source: Path, obstacle: str) -> None:
    path = Path(store.path_of(KEY))
    if obstacle == "file":
        path.touch()
    elif obstacle == "link":
        path.symlink_to(path.parent.parent)
    else:
        (path / "folder").mkdir(parents=True)
        path.chmod(0o700)
    with store.locked(KEY):
        make_entry(store, source=source)
    assert is_found(store)
    assert not support.leftovers(Path(store.folder))
    assert source.exists()


def test_of_two_that_make_the_same_entry_one_stays(store: Store, source: Path) -> None:
    """As on file systems without locks."""
    for path in [store.begin(KEY) for _ in range(2)]:
        make_entry(store, source=source, path=path)
    assert is_found(store)
    assert not support.leftovers(Path(store.folder))


def test_an_entry_that_cannot_get_its_name(store: Store, source: Path) -> None:
    path = store.begin(KEY)
    Path(store.path_of(KEY)).touch()
    with pytest.raises(NotADirectoryError):
        make_entry(store, source=source, path=path)


def test_discarding(store: Store, entry: Path) -> None:
    store.discard(str(entry))
    store.discard(str(entry))
    assert not list(entry.parent.iterdir())


def test_an_entry_that_the_disk_refuses_is_removed(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, os, "fsync", errno.EIO)
    folder = make_entry(store, source=source)
    wait_until_on_disk()
    assert not folder.exists()


def test_an_entry_that_is_removed_before_it_is_on_disk(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed_meanwhile = threading.Event()
    real = os.fsync

    def wait(descriptor: int) -> None:
        assert removed_meanwhile.wait(30)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", wait)
    store.discard(str(make_entry(store, source=source)))
    removed_meanwhile.set()
    wait_until_on_disk()
    assert not list(Path(store.folder).iterdir())


def test_holding_an_entry(store: Store, entry: Path) -> None:
    with store.hold(KEY), pytest.raises(BlockingIOError), locked_by_others(entry, shared=False):
        pass
    with locked_by_others(entry, shared=False):
        pass


# ---- locks


def test_who_makes_an_entry_is_alone_and_sweeps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_PATIENCE", 0.0)
    unfinished, other = store.begin(KEY), store.begin("other")
    condemned = Path(store.folder, f"{KEY}.0123.old")
    condemned.mkdir()
    with locked_elsewhere(Path(store.path_of(KEY) + LOCK)), pytest.raises(TimeoutError), store.locked(KEY):
        pass
    assert os.path.exists(unfinished)
    with store.locked(KEY):
        assert not os.path.exists(unfinished)
        assert not condemned.exists()
        assert os.path.exists(other)
        with pytest.raises(TimeoutError), store.locked(KEY):
            pass
        with store.locked("other"):
            assert not os.path.exists(other)


def test_without_locks_nothing_is_swept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may be writing it."""
    unfinished = store.begin(KEY)
    support.without_locks(monkeypatch)
    with store.locked(KEY):
        assert os.path.exists(unfinished)
