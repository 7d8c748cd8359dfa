"""Names of entries, and the identities of files that are in them."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ort_qdq_plugin.cache.key import Identity, entry_key, is_key, is_of, place_of
from tests.cache.support import longer, replaced, rewritten

ONE, OTHER = Identity(1, 2, 3, 4), Identity(1, 2, 3, 5)


def test_names_have_two_halves() -> None:
    key = entry_key(["place", 1], ONE)
    assert key == entry_key(("place", 1), Identity(*ONE))
    assert (is_of(key, ONE), is_of(key, OTHER)) == (True, False)
    other = entry_key(["place", 1], OTHER)
    assert (place_of(key), key) == (place_of(other), place_of(key) + key[16:])
    elsewhere = entry_key(["place", "1"], ONE)
    assert (place_of(elsewhere) == place_of(key), is_of(elsewhere, ONE)) == (False, True)


def test_what_entries_can_be_called() -> None:
    assert is_key(entry_key(["a name that is no UTF-8: \udcff"], ONE))
    assert not [name for name in ("", "a" * 31, "a" * 33, "g" * 32, "A" * 32, f"{'a' * 31}\n") if is_key(name)]


def touched(path: Path) -> None:
    os.utime(path, ns=(0, 100))  # Windows counts hundreds


def made_private(path: Path) -> None:
    path.chmod(0o600)


def linked(path: Path) -> None:
    os.link(path, path.with_name("backup"))


def renamed(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.with_name("other").rename(path)


@pytest.mark.parametrize(
    ("change", "is_kept"),
    [
        (rewritten, False), (longer, False), (touched, False), (replaced, False),
        (made_private, True), (linked, True), (renamed, True),
    ],
)  # fmt: skip
def test_an_identity_is_that_of_what_a_file_contains(source: Path, change: Callable[[Path], None], is_kept: bool) -> None:
    before = source.stat()
    time.sleep(0.02)  # the system's times have steps
    change(source)
    after = source.stat()
    # Which Windows tells nothing of: there it is the time when the file was made.
    assert after.st_ctime_ns != before.st_ctime_ns or os.name == "nt"
    assert (Identity.of(after) == Identity.of(before)) == is_kept
