"""Making room: which entries go, in which order, and which never."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from ort_qdq_plugin.cache.entry import MANIFEST
from ort_qdq_plugin.cache.key import Identity, entry_key
from ort_qdq_plugin.cache.prune import KEPT, keep_recent, prune, stored_entries, unfinished_entries
from ort_qdq_plugin.cache.store import LOCK, Store
from ort_qdq_plugin.system.platform import files
from tests.cache.support import PACKED, begun, entries, locked_elsewhere, make_entry, without_locks, written_back

NBYTES = 100_000  # about as many as the source has
YEAR = 365 * 24 * 3600.0
OLDEST, OLDER, OLD, NEW = (digit * 32 for digit in "3210")


@pytest.fixture
def store(tmp_path: Path, source: Path) -> Store:
    """Three entries: the first one was not used for three years, the last one for one."""
    store = Store(str(tmp_path / "cache"))
    for age, key in enumerate([OLDEST, OLDER, OLD]):
        make_entry(store, source=source, key=key, packed=bytes(NBYTES))
        used(store, key, years_ago=3 - age)
    written_back(tmp_path / "cache")
    return store


def used(store: Store, key: str, *, years_ago: float) -> None:
    lock = Path(store.path_of(key) + LOCK)
    lock.touch()
    os.utime(lock, (time.time() - years_ago * YEAR,) * 2)


def held(store: Store, key: str) -> files.File:
    """Which keeps an entry as long as it is open."""
    found = store.find(key, verify=False)
    assert found is not None
    found.close()
    return found.holder


def keys(store: Store) -> set[str]:
    return {path.name for path in entries(Path(store.folder))}


def taken(store: Store, key: str) -> int:
    """Bytes on the disk of what is in an entry, as the system's own tool counts them."""
    names = [str(path) for path in Path(store.path_of(key)).iterdir()]
    done = subprocess.run(["du", "--block-size=1", *names], check=True, capture_output=True, text=True)
    return sum(int(line.split()[0]) for line in done.stdout.splitlines())


@pytest.mark.needs("sizes on the disk")
def test_entries_as_they_lie_there(store: Store) -> None:
    stored = {entry.key: entry for entry in stored_entries(store)}
    assert {key: entry.nbytes for key, entry in stored.items()} == {key: taken(store, key) for key in stored}
    assert min(entry.nbytes for entry in stored.values()) >= NBYTES
    ages = [(time.time() - stored[key].used) / YEAR for key in (OLDEST, OLDER, OLD)]
    assert ages == pytest.approx([3, 2, 1], rel=0.01)


@pytest.mark.needs("sizes on the disk")
def test_a_sparse_file_takes_what_is_on_the_disk(store: Store) -> None:
    packed = Path(store.path_of(OLD), PACKED)
    packed.chmod(0o600)
    os.truncate(packed, 1 << 40)
    assert max(entry.nbytes for entry in stored_entries(store)) < 10 * NBYTES


@pytest.mark.needs("sizes on the disk")
def test_what_is_left_of_unfinished_entries(store: Store) -> None:
    """Of those alone: what is beside a good entry is that of the next load."""
    assert unfinished_entries(store) == {}
    other = "f" * 32
    for key in (other, OLD):
        left = Path(store.folder, f"{key}.12.tmp", "deep")
        left.mkdir(parents=True)
        (left / PACKED).write_bytes(b"1" * NBYTES)
    Path(store.folder, f"{other}{LOCK}").touch()
    Path(store.folder, f"{'e' * 32}{LOCK}").touch()
    found = unfinished_entries(store)
    assert found.keys() == {other, "e" * 32}
    assert found["e" * 32] == 0
    assert NBYTES <= found[other] < 2 * NBYTES


def test_what_is_no_entry_is_not_counted(store: Store) -> None:
    begun(store, NEW)
    Path(store.folder, "folder").mkdir()
    Path(store.folder, "folder", MANIFEST).write_text("{}")
    Path(store.folder, "file").touch()
    Path(store.folder, "link").symlink_to(store.path_of(OLD))
    assert {entry.key for entry in stored_entries(store)} == {OLDEST, OLDER, OLD}
    prune(store, 0)
    assert Path(store.folder, "folder", MANIFEST).exists()


def test_when_an_entry_was_used(store: Store) -> None:
    """Nobody is known to have used it, or somebody with a clock that was ahead."""
    os.unlink(store.path_of(OLD) + LOCK)
    (stored,) = (entry for entry in stored_entries(store) if entry.key == OLD)
    assert (stored.used, stored.hits) == (0.0, 0)
    used(store, OLD, years_ago=-10)
    assert all(entry.used <= time.time() for entry in stored_entries(store))


@pytest.mark.parametrize("kept", [{OLDEST, OLDER, OLD}, {OLDER, OLD}, {OLD}, set()])
def test_the_least_recently_used_go_first(store: Store, kept: set[str]) -> None:
    room = sum(entry.nbytes for entry in stored_entries(store) if entry.key in kept)
    prune(store, room)
    assert keys(store) == kept
    assert {path.name for path in Path(store.folder).iterdir()} == kept | {key + LOCK for key in kept}
    # A byte less is an entry less.
    prune(store, room - 1)
    assert keys(store) == set(sorted(kept)[:-1])


def test_entries_in_use_stay(store: Store) -> None:
    with held(store, OLDEST), locked_elsewhere(Path(store.path_of(OLD), MANIFEST), "LOCK_SH"):
        prune(store, 0)
    assert keys(store) == {OLDEST, OLD}
    prune(store, 0)
    assert not keys(store)


def test_an_entry_that_is_being_made_anew_stays(store: Store) -> None:
    with store.locked(OLDEST):
        prune(store, 0)
    assert keys(store) == {OLDEST}


def test_entries_in_use_do_not_keep_others_from_going(store: Store) -> None:
    (oldest,) = (entry for entry in stored_entries(store) if entry.key == OLDEST)
    with held(store, OLDEST):
        prune(store, oldest.nbytes)
    assert keys(store) == {OLDEST}


def test_of_a_model_that_is_replaced_the_most_recent_entries_stay(tmp_path: Path, source: Path) -> None:
    """Those in use stay as well, and those of other models; locks without an entry go."""
    store = Store(str(tmp_path / "replaced"))
    versions = [entry_key(["here"], Identity(version, 0, 0, 0)) for version in range(KEPT + 4)]
    other = entry_key(["elsewhere"], Identity(0, 0, 0, 0))
    for age, key in enumerate([other, *versions]):
        if age != 3:
            make_entry(store, source=source, key=key)
        used(store, key, years_ago=20 - age)
    without_entry = versions[2]
    with held(store, versions[0]):
        used(store, versions[0], years_ago=19)
        keep_recent(store, versions[-1])
    left = {other, versions[0], *versions[-KEPT:]}
    assert keys(store) == left
    assert without_entry not in left
    assert {path.name for path in Path(store.folder).glob("*.lock")} == {f"{key}.lock" for key in left}
    keep_recent(store, versions[-1])
    assert keys(store) == {other, *versions[-KEPT:]}


@pytest.mark.parametrize("fifo", [False, True])
def test_an_entry_without_a_manifest_goes(store: Store, fifo: bool) -> None:
    """And one with a FIFO in its place, which is not waited for."""
    os.unlink(Path(store.path_of(OLDEST), MANIFEST))
    if fifo:
        os.mkfifo(Path(store.path_of(OLDEST), MANIFEST))
    prune(store, 0)
    assert not keys(store)


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_a_lock_that_is_none_goes_with_its_entry(store: Store, kind: str) -> None:
    lock = Path(store.path_of(OLDEST) + LOCK)
    lock.unlink()
    if kind == "fifo":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(store.folder)
    prune(store, 0)
    assert not list(Path(store.folder).iterdir())


def test_without_locks_all_count_as_unused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    prune(store, 0)
    assert not keys(store)
