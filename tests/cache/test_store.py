"""The store: what is written is found, and nothing else is."""

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ort_qdq_plugin import Report
from ort_qdq_plugin.cache import store as store_module
from ort_qdq_plugin.cache.entry import MANIFEST, MODEL, ON_DISK
from ort_qdq_plugin.cache.manifest import Manifest
from ort_qdq_plugin.cache.store import LOCK, Store
from ort_qdq_plugin.cache.write_back import wait_until_on_disk
from ort_qdq_plugin.system.platform import files
from tests.cache import support
from tests.cache.support import KEY, PACKED, begun, in_use, is_found, locked_by_others, locked_elsewhere, make_entry
from tests.support import refuse


def test_its_directory_is_made_and_private(tmp_path: Path, source: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    store = Store(str(tmp_path / "link" / "of" / "two"))
    assert store.folder == str((tmp_path / "of" / "two").resolve())
    assert stat.S_IMODE(os.stat(store.folder).st_mode) == 0o700
    assert store.path_of(KEY) == f"{store.folder}/{KEY}"
    with pytest.raises(NotADirectoryError):
        Store(str(source))


@pytest.mark.needs("modes")
def test_directories_that_it_makes_are_the_users_own(tmp_path: Path) -> None:
    """Whatever the umask is: entries in a directory that others can write to are not used."""
    before = os.umask(0o002)
    try:
        Store(str(tmp_path / "of" / "many" / "parts"))
    finally:
        os.umask(before)
    made = [tmp_path / "of", tmp_path / "of" / "many", tmp_path / "of" / "many" / "parts"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in made] == [0o755, 0o755, 0o700]


@pytest.mark.parametrize("unsafe", ["parent", "parent/cache"])
@pytest.mark.parametrize("mode", [0o770, 0o777])
@pytest.mark.usefixtures("shared_group")
def test_a_directory_in_which_others_can_replace_files(tmp_path: Path, unsafe: str, mode: int) -> None:
    folder = tmp_path / "parent" / "cache"
    folder.mkdir(parents=True)
    (tmp_path / unsafe).chmod(mode)
    with pytest.raises(PermissionError) as refused:
        Store(str(folder))
    assert refused.value.filename == str(tmp_path / unsafe)
    # As /tmp is: nobody can replace what is another user's.
    (tmp_path / unsafe).chmod(mode | stat.S_ISVTX)
    Store(str(folder))


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
    path = begun(store)
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


@pytest.mark.needs("free names")
def test_of_two_that_make_the_same_entry_one_stays(store: Store, source: Path) -> None:
    """As on file systems without locks."""
    for path in [begun(store) for _ in range(2)]:
        make_entry(store, source=source, path=path)
    assert is_found(store)
    assert not support.leftovers(Path(store.folder))


def test_a_manifest_that_nobody_would_read_is_not_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest(KEY, (), Report("stock"), "")
    monkeypatch.setattr(store_module, "MAX_BYTES", len(manifest.to_bytes()) - 1)
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as refused:
        store.commit(KEY, begun(store), manifest)
    assert refused.value.errno == errno.EFBIG
    assert not is_found(store)


@pytest.mark.needs("free names")
def test_an_entry_that_cannot_get_its_name(store: Store, source: Path) -> None:
    path = begun(store)
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


@pytest.mark.needs("free names")
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
    holder = store.commit(KEY, begun(store), Manifest(KEY, (), Report("stock"), ""))
    with pytest.raises(BlockingIOError), locked_by_others(Path(store.path_of(KEY)), shared=False):
        pass
    holder.close()
    with locked_by_others(Path(store.path_of(KEY)), shared=False):
        pass


# ---- locks


def test_who_makes_an_entry_is_alone_and_sweeps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_PATIENCE", 0.0)
    unfinished, other = begun(store), begun(store, "other")
    condemned = Path(store.folder, f"{KEY}.0123.old")
    condemned.mkdir()
    with locked_elsewhere(Path(store.path_of(KEY) + LOCK)), pytest.raises(TimeoutError), store.locked(KEY):
        pass
    assert os.path.exists(unfinished)
    with store.locked(KEY):
        assert not os.path.exists(unfinished)
        assert not condemned.exists()
        assert os.path.exists(other)
        with pytest.raises(OSError, match="signal handler"), store.locked(KEY):
            pass
        with store.locked("other"):
            assert not os.path.exists(other)


@contextmanager
def growing(path: Path) -> Iterator[None]:
    """While the block runs, more and more is written into a file."""
    stopped = threading.Event()

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            while not stopped.wait(0.01):
                file.write(b"more")

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(write)
        try:
            yield
        finally:
            stopped.set()
            done.result()


def test_whoever_makes_progress_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not, in the end."""
    monkeypatch.setattr(store_module, "_PATIENCE", 0.1)
    unfinished = Path(begun(store), PACKED)
    with locked_elsewhere(Path(store.path_of(KEY) + LOCK)) as other:
        start = time.monotonic()
        with pytest.raises(TimeoutError), store.locked(KEY):
            pass
        assert time.monotonic() - start < 5.0
        with growing(unfinished):
            monkeypatch.setattr(store_module, "_LONG_PATIENCE", 0.5)
            start = time.monotonic()
            with pytest.raises(TimeoutError), store.locked(KEY):
                pass
            assert time.monotonic() - start > 0.5
            monkeypatch.setattr(store_module, "_LONG_PATIENCE", 60.0)
            threading.Timer(0.5, other.kill).start()
            with store.locked(KEY):
                assert other.wait() != 0


def test_without_locks_nothing_is_swept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may be writing it."""
    unfinished = begun(store)
    support.without_locks(monkeypatch)
    with store.locked(KEY):
        assert os.path.exists(unfinished)


def test_where_open_folders_cannot_be_renamed(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry is made at its place, and is none before its manifest is there; nor after that was lost."""
    monkeypatch.setattr(files, "SHARES_FREELY", False)
    for _ in range(2):
        with monkeypatch.context() as patched:
            path = begun(store)
            assert path == store.path_of(KEY)
            assert store.find(KEY, verify=False) is None
            refuse(patched, os, "rename", errno.EACCES)
            folder = make_entry(store, source=source, path=path)
        assert (folder / ON_DISK).exists(), "without waiting for it"
        entry = store.find(KEY, verify=False)
        assert entry is not None
        entry.holder.close()
        entry.close()
        (folder / MANIFEST).unlink()
