"""Functions of kernel32 and psapi. Names, types and numbers are those of Microsoft's documentation of the Windows API."""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["HANDLE", "Overlapped", "address_of", "kernel32", "last_error"]

HANDLE, _DWORD, _SIZE = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_size_t
_POINTER, _BOOL, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_wchar_p

kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)

_TYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "CreateFileW": (HANDLE, (_TEXT, _DWORD, _DWORD, _POINTER, _DWORD, _DWORD, HANDLE)),
    "CloseHandle": (_BOOL, (HANDLE,)),
    "ReadFile": (_BOOL, (HANDLE, _POINTER, _DWORD, _POINTER, _POINTER)),
    "WriteFile": (_BOOL, (HANDLE, _POINTER, _DWORD, _POINTER, _POINTER)),
    "SetFileInformationByHandle": (_BOOL, (HANDLE, ctypes.c_int, _POINTER, _DWORD)),
    "LockFileEx": (_BOOL, (HANDLE, _DWORD, _DWORD, _DWORD, _DWORD, _POINTER)),
    "UnlockFileEx": (_BOOL, (HANDLE, _DWORD, _DWORD, _DWORD, _POINTER)),
    "VirtualUnlock": (_BOOL, (_POINTER, _SIZE)),
    "OpenProcess": (HANDLE, (_DWORD, _BOOL, _DWORD)),
    "GetCurrentProcess": (HANDLE, ()),
    "GetProcessAffinityMask": (_BOOL, (HANDLE, _POINTER, _POINTER)),
    "GlobalMemoryStatusEx": (_BOOL, (_POINTER,)),
    "IsProcessorFeaturePresent": (_BOOL, (_DWORD,)),
}
for _name, (_result, _arguments) in _TYPES.items():
    _function = getattr(kernel32, _name)
    _function.restype, _function.argtypes = _result, _arguments


class Overlapped(ctypes.Structure):
    """OVERLAPPED: where in a file a call begins."""

    _fields_ = (
        ("internal", _SIZE),
        ("internal_high", _SIZE),
        ("offset", _DWORD),
        ("offset_high", _DWORD),
        ("event", HANDLE),
    )

    @classmethod
    def at(cls, offset: int) -> Overlapped:
        """For this byte of the file."""
        return cls(offset=offset & 0xFFFFFFFF, offset_high=offset >> 32)


def last_error(path: str | None = None) -> OSError:
    """The error of the last call in this thread, with the `errno` of its kind."""
    problem = ctypes.get_last_error()
    return OSError(None, ctypes.FormatError(problem), path, problem)


def address_of(buffer: Any) -> int:
    """Where in memory the bytes of a buffer are. It must not go meanwhile."""
    import numpy as np  # there already where models are loaded, and not needed before

    return int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0])
