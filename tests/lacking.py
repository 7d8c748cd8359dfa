"""What tests ask for that not every system has: they are skipped there, and say what it is.

No list of files says which tests run where. A test that calls what the system lacks is skipped by what comes of that
(`lacking`, `Lacking`); one that relies on what a system does otherwise says so (``@pytest.mark.needs``, `NEEDS`).
"""

import ctypes
import errno
import functools
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = [
    "NEEDS",
    "Lacking",
    "fcntl",
    "grp",
    "has",
    "lacking",
    "lacking_in",
    "pty",
    "pwd",
    "require",
    "resource",
    "termios",
]


class Lacking:
    """Stands for a module that this system has not. Whoever uses anything of it is skipped."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        pytest.skip(f"this system has no {self._name}.{attribute}")


if sys.platform == "win32":
    fcntl, grp, pty, pwd, resource, termios = map(Lacking, ("fcntl", "grp", "pty", "pwd", "resource", "termios"))
else:
    import fcntl
    import grp
    import pty
    import pwd
    import resource
    import termios

_POSIX_FOLDERS = ("/proc/", "/sys/", "/dev/", "/bin/", "/usr/")
# Of Windows: no such function, not supported, not implemented, no such name is possible, no privilege.
_NOT_SUPPORTED = (1, 50, 120, 123, 1314)
_TOLD_BY_PYTEST = re.compile(
    r"<module '(?P<module>[\w.]+)'.* has no attribute '(?P<name>\w+)'"
    r"|'module' object at (?P<at>[\w.]+) has no attribute '(?P<other>\w+)'"
    r"|(?P<constant>[A-Za-z]\w*)"
)
_IN_A_PROCESS = re.compile(
    r"AttributeError: module '(?P<module>\w+)' has no attribute '(?P<name>\w+)'"
    r"|ModuleNotFoundError: No module named '(?P<missing>fcntl|grp|pty|pwd|resource|termios)'"
    rf"|FileNotFoundError: .*'(?P<path>(?:{'|'.join(_POSIX_FOLDERS)})[^']*)'"
)


def lacking(error: BaseException) -> str | None:
    """What this system lacks, if that is what an error comes of."""
    if sys.platform == "linux":
        return None
    if isinstance(error, AttributeError):
        return _attribute(error)
    if isinstance(error, ModuleNotFoundError) and error.name in ("fcntl", "grp", "pty", "pwd", "resource", "termios"):
        return f"this system has no module {error.name}"
    if isinstance(error, TypeError) and "for mmap()" in str(error):
        return f"mmap.mmap is another one on this system: {error}"
    if isinstance(error, OSError) and str(error.filename).replace("\\", "/").startswith(_POSIX_FOLDERS):
        return f"this system has no {error.filename}"
    if isinstance(error, NotImplementedError) or getattr(error, "winerror", None) in _NOT_SUPPORTED:
        return f"this system, or this user on it, cannot have this: {error}"
    if isinstance(error, OSError) and error.errno == errno.EOPNOTSUPP:
        return f"this system cannot have this: {error}"
    if isinstance(error, AssertionError) and "S_IMODE" in str(error):
        return NEEDS["modes"][1]
    return None


def _attribute(error: AttributeError) -> str | None:
    """What the system, or this package's module for it, has not that a test has asked for, or wanted to replace."""
    if error.name is None:
        found = _TOLD_BY_PYTEST.fullmatch(str(error))
        if found is None:
            return None
        owner = found["module"] or found["at"] or "os"
        name = found["name"] or found["other"] or found["constant"]
    else:
        owner = getattr(error.obj, "__name__", f"{type(error.obj).__module__}.{type(error.obj).__name__}")
        name = error.name
    is_systems = owner.partition(".")[0] in sys.stdlib_module_names or owner.startswith("ort_qdq_plugin.system.")
    return f"this system has no {owner}.{name}" if is_systems else None


def lacking_in(messages: str) -> str | None:
    """What this system lacks, if the messages of a Python process end with an error that comes of that."""
    found = None if sys.platform == "linux" else _IN_A_PROCESS.match((messages.splitlines() or [""])[-1])
    if found is None:
        return None
    return f"this system has no {found['path'] or found['missing'] or '{module}.{name}'.format(**found.groupdict())}"


@functools.cache
def _has_links() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.symlink("file", Path(folder, "link"))
        except (OSError, NotImplementedError):
            return False
        return Path(folder, "link").is_symlink()


def _is_wine() -> bool:
    if sys.platform != "win32":
        return False
    return hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")


@contextmanager
def _open_file() -> Iterator[tuple[int, Path]]:
    """A file that others may rename and remove while it is open."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_TEMPORARY", 0))
        try:
            yield descriptor, path
        finally:
            os.close(descriptor)


@functools.cache
def _takes_names_away() -> bool:
    with _open_file() as (_, path):
        path.unlink()
        return not path.exists()


@functools.cache
def _knows_what_was_renamed() -> bool:
    with _open_file() as (descriptor, path):
        before = os.fstat(descriptor)
        path.rename(path.with_name("other"))
        return os.path.samestat(before, os.fstat(descriptor))


@functools.cache
def _counts_pages() -> bool:
    try:
        return any(line.startswith("Rss:") and int(line.split()[1]) for line in Path("/proc/self/smaps").open())
    except OSError:
        return False


@functools.cache
def _limits_memory() -> bool:
    if os.name != "posix":
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        return True
    high = 1 << 46
    resource.setrlimit(resource.RLIMIT_AS, (high, hard))
    seen, _ = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return seen == high


NEEDS: Mapping[str, tuple[Callable[[], bool], str]] = {
    "modes": (lambda: os.name == "posix", "files have no modes and no owners that a status tells on this system"),
    "free names": (lambda: os.name == "posix", "an open file can neither be removed nor renamed on this system"),
    "removed names": (_takes_names_away, "an open file keeps its name, when it is removed, until it is closed"),
    "renamed files": (_knows_what_was_renamed, "the status of an open file, when it is renamed, is that of another one"),
    "sizes on the disk": (lambda: os.name == "posix", "a status does not tell what a file takes on the disk on this system"),
    "folders that are open": (lambda: os.name == "posix", "a folder has no descriptor on this system"),
    "os.open": (lambda: os.name == "posix", "files are opened by another call than os.open on this system"),
    "a position": (lambda: os.name == "posix", "reading at an offset moves a file's position on this system"),
    "a C library": (lambda: os.name == "posix", "ctypes.CDLL(None) is no C library on this system"),
    "unnamed files": (lambda: os.name == "posix", "a file keeps its name on this system"),
    "fork": (lambda: hasattr(os, "fork"), "this system has no os.fork"),
    "a shell": (lambda: os.name == "posix", "this system has no shell of POSIX"),
    "symbolic links": (_has_links, "this system, or this user on it, makes no symbolic links"),
    "dropped pages": (lambda: sys.platform != "darwin", "pages of files are only marked as not needed on this system"),
    "counted pages": (_counts_pages, "it is not told how much of a mapping is in memory: qemu-user says 0 of each"),
    "memory limits": (_limits_memory, "a process's memory has no limit: qemu-user takes no notice of it"),
    "/proc": (lambda: sys.platform == "linux", "this system tells it otherwise than in /proc, or not at all"),
    "sizes": (lambda: sys.platform == "linux", "this system does not tell this of a process"),
    "one root": (lambda: os.name == "posix", "paths begin with a drive on this system"),
    "page faults": (lambda: not _is_wine(), "wine counts no page faults"),
    "interrupts": (lambda: os.name == "posix", "no signal interrupts a process on this system"),
}
"""Name -> whether this system has it, and the reason if it has not."""


def has(need: str) -> bool:
    """Whether this system has what `NEEDS` calls so."""
    return NEEDS[need][0]()


def require(need: str) -> None:
    """Skip the test if this system has not what `NEEDS` calls so."""
    if not has(need):
        pytest.skip(NEEDS[need][1])
