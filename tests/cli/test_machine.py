"""Bringing the machine into the same state before each measurement."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from ort_qdq_plugin.cli import machine

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


def test_available_memory() -> None:
    assert 0 < machine.available_memory() < os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
