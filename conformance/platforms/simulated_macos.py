"""Makes this interpreter on Linux one of macOS, as far as Python code sees: imported before anything else is.

What Darwin lacks is gone from `os`, `select`, `mmap` and the C library, /proc is hidden from this package, and pages have
16 KiB. What Darwin has instead is there: kqueue, F_PREALLOCATE, sysctlbyname(3), proc_pid_rusage, malloc_zone_statistics.
Libraries that are not written in Python see Linux.
"""

import builtins
import ctypes
import errno
import fcntl
import functools
import io
import mmap
import os
import posix
import resource
import select
import struct
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterable
from typing import Any

__all__: list[str] = []

_PAGE_BYTES = 16384
_F_PREALLOCATE, _F_ALLOCATECONTIG, _KEEP_SIZE = 42, 2, 1
_MAP_NORESERVE = 0x4000  # Linux's, which is what the kernel below takes

_open, _CDLL, _fcntl, _getrusage, _Epoll = os.open, ctypes.CDLL, fcntl.fcntl, resource.getrusage, vars(select)["epoll"]

# Of CPython's for macOS, none has these.
_LINUX_ONLY = (
    "O_TMPFILE", "O_DIRECT", "O_LARGEFILE", "O_NOATIME", "O_PATH", "O_RSYNC", "memfd_create", "posix_fallocate",
    "posix_fadvise", "copy_file_range", "eventfd", "eventfd_read", "eventfd_write", "fdatasync", "getrandom", "getresgid",
    "getresuid", "getxattr", "listxattr", "pidfd_open", "pipe2", "removexattr", "sched_getaffinity", "sched_getparam",
    "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "setns",
    "setresgid", "setresuid", "setxattr", "splice", "unshare",
)  # fmt: skip
_ADVICE = {"MADV_NORMAL", "MADV_RANDOM", "MADV_SEQUENTIAL", "MADV_WILLNEED", "MADV_DONTNEED", "MADV_FREE"}
_TAKE_PATHS = ("open", "stat", "lstat", "access", "listdir", "scandir", "readlink")
_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "ort_qdq_plugin", "")
_BETWEEN = {"genericpath", "posixpath", "pathlib", "os", "io", "tempfile"}
_LIBC_OF_LINUX = {"malloc_trim", "mallinfo", "mallinfo2", "sync_file_range", "memfd_create", "fallocate", "posix_fadvise"}


def _proc(path: str) -> str:
    """What a file below /proc has, which Python code does not see."""
    descriptor = _open(path, os.O_RDONLY)
    try:
        return b"".join(iter(functools.partial(os.read, descriptor, 1 << 16), b"")).decode()
    finally:
        os.close(descriptor)


def _sizes(text: str) -> dict[str, int]:
    lines = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(number) * 1024 for name, number, _ in lines}


def _sysctl(name: bytes, value: Any, size: Any, new: None, new_size: Any) -> int:
    memory = _sizes(_proc("/proc/meminfo"))
    known = {
        b"kern.bootsessionuuid": _proc("/proc/sys/kernel/random/boot_id").strip().upper().encode() + b"\0",
        b"machdep.cpu.brand_string": b"Apple M0\0",
        b"hw.cpufamily": struct.pack("I", 0x1B588BB3),
        b"hw.pagesize": struct.pack("q", _PAGE_BYTES),
        b"vm.page_free_count": struct.pack("I", memory["MemFree"] // _PAGE_BYTES),
        b"vm.page_purgeable_count": struct.pack("I", 0),
        b"vm.page_pageable_external_count": struct.pack("I", (memory["MemAvailable"] - memory["MemFree"]) // _PAGE_BYTES),
    }
    if name not in known:
        return -1
    ctypes.memmove(value, known[name], len(known[name]))
    size._obj.value = len(known[name])
    return 0


def _proc_pid_rusage(pid: Any, flavor: Any, numbers: Any) -> int:
    try:
        sizes = _sizes(_proc(f"/proc/{pid.value}/status"))
        resident, own, most = sizes["VmRSS"], sizes["RssAnon"], sizes["VmHWM"]
    except (OSError, KeyError):
        return -1
    numbers._obj[8], numbers._obj[9], numbers._obj[30] = resident, own, most
    return 0


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple((f"field{number}", ctypes.c_size_t) for number in range(10))


def _malloc_zone_statistics(zone: None, found: Any) -> None:
    mallinfo = _CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo
    said = mallinfo()
    found._obj.size_in_use = said.field7 + said.field4


_LIBC_OF_DARWIN: dict[str, Callable[..., Any]] = {
    "sysctlbyname": _sysctl,
    "proc_pid_rusage": _proc_pid_rusage,
    "malloc_zone_statistics": _malloc_zone_statistics,
}


class _Libc(ctypes.CDLL):
    def __getattribute__(self, name: str) -> Any:
        if name in _LIBC_OF_DARWIN:
            return _LIBC_OF_DARWIN[name]
        if name in _LIBC_OF_LINUX and super().__getattribute__("_name") is None:
            raise AttributeError(name)
        return super().__getattribute__(name)


class _Kqueue:
    """Owns a descriptor, which it does not know any more in a forked child (Python's issue 110395)."""

    def __init__(self, owner: Any = None) -> None:
        self._owner = owner
        if owner is None:
            raise OSError(errno.ENOSYS, "there are no real ones")  # the standard library tries, and waits by other means
        _kqueues.add(self)

    @classmethod
    def fromfd(cls, descriptor: int) -> "_Kqueue":
        return cls(_Epoll.fromfd(descriptor))

    @property
    def closed(self) -> bool:
        return self._owner is None or bool(self._owner.closed)

    def fileno(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed kqueue object")
        return int(self._owner.fileno())

    def close(self) -> None:
        if self._owner is not None:
            self._owner.close()

    def forget(self) -> None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._owner))
        self._owner = None


_kqueues: weakref.WeakSet[_Kqueue] = weakref.WeakSet()


def _forget_all() -> None:
    for kqueue in _kqueues:
        kqueue.forget()


def _fcntl_of_darwin(descriptor: Any, command: int, argument: Any = 0) -> Any:
    if command != _F_PREALLOCATE:
        return _fcntl(descriptor, command, argument)
    flags, _, _, length, _ = struct.unpack("=Iiqqq", argument)
    if flags == _F_ALLOCATECONTIG:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    libc = _CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, _KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return argument


def _getrusage_of_darwin(who: int) -> Any:
    used = list(_getrusage(who))
    used[2] *= 1024  # ru_maxrss is in bytes there
    return resource.struct_rusage(used)


def _is_asked_by_package() -> bool:
    """Whether this package has called the function that asks: tests may look at what there is on Linux."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals["__name__"] in _BETWEEN:
        frame = frame.f_back
    return frame.f_code.co_filename.startswith(_PACKAGE)


def _hidden(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, for which there is nothing below /proc."""

    @functools.wraps(function)
    def call(path: Any = ".", *arguments: Any, **more: Any) -> Any:
        if not isinstance(path, int) and os.fsdecode(path).startswith("/proc") and _is_asked_by_package():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return function(path, *arguments, **more)

    for supported in (os.supports_dir_fd, os.supports_effective_ids, os.supports_fd, os.supports_follow_symlinks):
        if function in supported:
            supported.add(call)
    return call


def _without(module: Any, names: Iterable[str]) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def _become_darwin() -> None:
    # In which the standard library finds how this interpreter was built.
    os.environ["_PYTHON_SYSCONFIGDATA_NAME"] = sysconfig._get_sysconfigdata_name()  # type: ignore[attr-defined]
    sys.platform = "darwin"
    prefixes = ("MFD_", "EFD_", "SCHED_", "SPLICE_", "CLONE_", "POSIX_FADV_", "RWF_", "XATTR_")
    for module in (os, posix):
        _without(module, (*_LINUX_ONLY, *(name for name in dir(os) if name.startswith(prefixes))))
    _without(select, [name for name in dir(select) if name.lower().startswith("epoll")])
    advice = {name for name in dir(mmap) if name.startswith("MADV_")} - _ADVICE
    _without(mmap, (*advice, "MAP_DENYWRITE", "MAP_EXECUTABLE", "MAP_POPULATE", "MAP_STACK"))
    changed: dict[Any, dict[str, Any]] = {
        mmap: {"PAGESIZE": _PAGE_BYTES, "ALLOCATIONGRANULARITY": _PAGE_BYTES, "MAP_NORESERVE": _MAP_NORESERVE},
        select: {"kqueue": _Kqueue},
        ctypes: {"CDLL": _Libc},
        fcntl: {"fcntl": _fcntl_of_darwin},
        resource: {"getrusage": _getrusage_of_darwin},
        os: {name: _hidden(getattr(os, name)) for name in _TAKE_PATHS},
        builtins: {"open": _hidden(io.open)},
    }
    for module, attributes in changed.items():
        for name, value in attributes.items():
            setattr(module, name, value)
    io.open = builtins.open
    os.register_at_fork(after_in_child=_forget_all)


_become_darwin()
