"""The store: what is written is found, and nothing else is."""

import errno
import logging
import os
import stat
import threading
from pathlib import Path

import pytest

from ort_qdq_plugin import Report
from ort_qdq_plugin.cache import store as store_module
from ort_qdq_plugin.cache.entry import MODEL
from ort_qdq_plugin.cache.manifest import Manifest
from ort_qdq_plugin.cache.store import LOCK, Store
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from tests.cache import support
from tests.cache.support import KEY, PACKED, in_use, is_found, locked_by_others, locked_elsewhere, make_entry
from tests.support import refuse


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


def test_what_is_committed_is_held(store: Store, source: Path) -> None:
    holder = store.commit(KEY, store.begin(KEY), Manifest(KEY, (), Report("stock"), ""))
    with pytest.raises(BlockingIOError), locked_by_others(Path(store.path_of(KEY)), shared=False):
        pass
    holder.close()
    with locked_by_others(Path(store.path_of(KEY)), shared=False):
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
