"""What macOS has in place of calls of Linux, with a C library that answers as its headers say."""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ort_qdq_plugin.system.platform import files, host
from ort_qdq_plugin.system.posix.descriptors import owners

SIZE = 100_000
F_PREALLOCATE, F_ALLOCATECONTIG, F_ALLOCATEALL, F_PEOFPOSMODE = 42, 2, 4, 3


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The functions of the C library, by name."""
    functions: dict[str, Any] = {}
    # The module asks for them anew each time.
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(**functions))
    monkeypatch.setattr(sys, "platform", "darwin")
    return functions


def tells(values: dict[str, bytes]) -> Callable[..., int]:
    def sysctlbyname(name: bytes, value: Any, size: Any, *_: object) -> int:
        if name.decode() not in values:
            return -1
        ctypes.memmove(value, values[name.decode()], len(values[name.decode()]))
        size._obj.value = len(values[name.decode()])
        return 0

    return sysctlbyname


@pytest.mark.parametrize("refused", [(), (F_ALLOCATECONTIG,), (F_ALLOCATECONTIG, F_ALLOCATEALL)])
def test_room_is_reserved_in_one_piece_or_in_several(
    tmp_path: Path, refused: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def call(descriptor: int, command: int, argument: bytes) -> bytes:
        flags, mode, offset, length, _ = struct.unpack("=Iiqqq", argument)
        assert os.fstat(descriptor).st_size == 0
        assert (command, mode, offset, length, len(argument)) == (F_PREALLOCATE, F_PEOFPOSMODE, 0, SIZE, 32)
        asked.append(flags)
        if flags in refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return argument

    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(fcntl, "fcntl", call)
    with files.create(str(tmp_path / "file"), 0o600) as file:
        if len(refused) == 2:
            with pytest.raises(OSError, match="No space"):
                files.reserve(file, SIZE)
        else:
            files.reserve(file, SIZE)
            assert os.fstat(file.fileno()).st_size == SIZE
    assert asked == [F_ALLOCATECONTIG, F_ALLOCATEALL][: len(asked)]
    assert len(asked) == min(len(refused) + 1, 2)


def test_what_the_kernel_tells(libc: dict[str, Any]) -> None:
    libc["sysctlbyname"] = tells(
        {
            "kern.bootsessionuuid": b"BOOT\0",
            "machdep.cpu.brand_string": b"Some Processor\0",
            "hw.cpufamily": struct.pack("I", 7),
            "hw.pagesize": struct.pack("q", 16384),
            "vm.page_free_count": struct.pack("I", 100),
            "vm.page_purgeable_count": struct.pack("I", 20),
            "vm.page_pageable_external_count": struct.pack("I", 3),
        }
    )
    assert (host.boot_id(), host.free_memory()) == ("BOOT", 123 * 16384)
    told = host.processor()
    assert "Some Processor" in told
    libc["sysctlbyname"] = tells({"machdep.cpu.brand_string": b"Some Processor\0", "hw.cpufamily": struct.pack("I", 8)})
    assert host.processor() != told
    assert (host.boot_id(), host.free_memory()) == ("", 0)


def test_the_sizes_of_a_process(libc: dict[str, Any]) -> None:
    class Usage(ctypes.Structure):  # struct rusage_info_v4, by its names
        _fields_ = (
            ("uuid", ctypes.c_uint8 * 16),
            *((name, ctypes.c_uint64) for name in ("user", "system", "idle", "interrupts", "pageins", "wired")),
            ("resident", ctypes.c_uint64),
            ("footprint", ctypes.c_uint64),
            ("rest", ctypes.c_uint64 * 20),
            ("most", ctypes.c_uint64),
        )

    def rusage(pid: Any, flavor: Any, numbers: Any) -> int:
        usage = Usage.from_buffer(numbers._obj)
        usage.resident, usage.footprint, usage.most = 30, 20, 25
        return 0 if (pid.value, flavor.value) == (os.getpid(), 4) else -1

    libc["proc_pid_rusage"] = rusage
    sizes = {"VmHWM": 25, "VmRSS": 30, "RssAnon": 20, "RssFile": 10, "RssShmem": 0}
    assert host.sizes_of() == host.sizes_of(os.getpid()) == sizes
    assert (host.anonymous_bytes(), host.sizes_of(1)) == (20, {})


def test_the_heap(libc: dict[str, Any]) -> None:
    def statistics(zone: None, found: Any) -> None:
        assert ctypes.sizeof(found._obj) == 4 * ctypes.sizeof(ctypes.c_size_t)
        found._obj.size_in_use = 12

    libc["malloc_zone_statistics"] = statistics
    assert host.heap_bytes() == 12


def test_pages_are_not_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There it is advice about when to write them back, which costs time."""
    mapping = mmap.mmap(-1, 4 * mmap.PAGESIZE)
    mapping[:] = content = b"x" * len(mapping)
    monkeypatch.setattr(sys, "platform", "darwin")
    host.drop_pages(mapping, 0, len(mapping))
    assert mapping[:] == content


def test_a_forked_child_closes_what_its_owner_forgot(tmp_path: Path) -> None:
    """A kqueue is closed in a forked child, and leaves the descriptor open."""

    class Kqueue:
        forgotten = False

        def __init__(self) -> None:
            self.inner, self.identity = next(owners([os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)]))

        @property
        def closed(self) -> bool:
            return self.forgotten

        def fileno(self) -> int:
            if self.closed:
                raise ValueError("I/O operation on closed kqueue object")
            return int(self.inner.fileno())

        def close(self) -> None:
            self.inner.close()

    owner = Kqueue()
    file = files.File((owner, owner.identity), "r+")
    number = file.fileno()
    child = os.fork()
    if not child:
        owner.forgotten = True
        files.write_at(file, 0, b"by the child")
        file.close()
        try:
            os.fstat(number)
        except OSError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert files.read_at(file, 0, memoryview(bytearray(20))) == len(b"by the child")
    file.close()
