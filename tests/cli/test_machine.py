"""Bringing the machine into the same state before each measurement."""

import ctypes
import mmap
import os
import sys
from pathlib import Path

import pytest

from ort_qdq_plugin.cli import machine
from tests.support import python

MB = 1 << 20


def file_pages(path: Path) -> int:
    """How many bytes of a file are in the page cache."""
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as view,
    ):
        present = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
        libc = ctypes.CDLL(None, use_errno=True)
        start = ctypes.addressof(ctypes.c_char.from_buffer(view))
        assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), present) == 0
        return sum(state & 1 for state in present) * mmap.PAGESIZE


def test_files_are_in_the_page_cache_afterwards(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("nothing can be taken out of the page cache here")
    path = tmp_path / "file"
    path.write_bytes(bytes(32 * MB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    machine.read_files([path, tmp_path / "missing", str(tmp_path)])
    assert file_pages(path) == 32 * MB


def test_memory_is_touched_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[int] = []
    real = mmap.mmap

    def mapped(number: int, length: int, **options: int) -> mmap.mmap:
        wanted.append(length)
        return real(number, length, **options)

    monkeypatch.setattr(mmap, "mmap", mapped)
    monkeypatch.setattr(machine, "available_memory", lambda: 8 * MB)
    for nbytes in (0, MB, 100 * MB):
        machine.settle_free_memory(nbytes)
    assert wanted == [mmap.PAGESIZE, MB, 4 * MB]


@pytest.mark.needs("memory limits")
def test_memory_that_cannot_be_had_is_left_alone() -> None:
    done = python("""
import resource
from ort_qdq_plugin.cli import machine
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
machine.available_memory = lambda: 100 << 30
machine.settle_free_memory(50 << 30)
""")
    assert done.returncode == 0, done.stderr


def test_available_memory() -> None:
    assert 0 < machine.available_memory() < os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (None, None, None),
        (None, 100 * MB, 100 * MB - 60 * MB + 30 * MB),
        (80 * MB, 100 * MB, 80 * MB - 60 * MB + 30 * MB),
        (10 * MB, None, 0),
    ],
)
def test_control_groups_limit_it(
    outer: int | None, inner: int | None, expected: int | None, version: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    own = {1: "3:memory:/outer/inner\n0::/\n", 2: "1:cpu:/elsewhere\n0::/outer/inner\n"}
    unlimited = {1: (1 << 63) - 4096, 2: "max"}
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}
    (tmp_path / "own").write_text(own[version])
    for folder, limit in (("outer", outer), ("outer/inner", inner)):
        group = tmp_path / ("memory" if version == 1 else "") / folder
        group.mkdir(parents=True)
        for name, value in zip(names[version], (limit or unlimited[version], 60 * MB), strict=True):
            (group / name).write_text(f"{value}\n")
        (group / "memory.stat").write_text(f"cache {30 * MB}\nactive_file {10 * MB}\ninactive_file {20 * MB}\n")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN_GROUPS", str(tmp_path / "own"))
    available = machine.available_memory()
    assert available == expected if expected is not None else available > 100 * MB


def test_groups_that_cannot_be_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "memory.max").write_text("many")
    (tmp_path / "memory.current").write_text("1")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)
    for own in ("own", "missing"):
        monkeypatch.setattr(machine, "_OWN_GROUPS", str(tmp_path / own))
        assert machine.available_memory() > 100 * MB
