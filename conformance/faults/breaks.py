"""What a process breaks for itself, before it loads or at some moment of the load."""

import mmap
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from conformance.faults.job import FILLER, MB, Job
from ort_qdq_plugin.system.platform import host

__all__ = ["BREAKS", "entering", "fill_disk", "missed", "progress"]

_PACKING, _PACKED = "progress of packing", "end of packing"
"""Moments that are no stages of a load."""
_awaited: list[tuple[str, Callable[[], object]]] = []


def _at(moment: str, *actions: Callable[[], object]) -> None:
    """Call one each time that a stage of this name begins, or a moment of packing comes."""
    _awaited.extend((moment, action) for action in actions)


def entering(moment: str) -> None:
    """Do what is to be done at this moment: a load tells of each."""
    if _awaited and _awaited[0][0] == moment:
        _awaited.pop(0)[1]()


def progress(done: int, total: int) -> None:
    entering(_PACKING)
    if done == total:
        entering(_PACKED)


def missed() -> bool:
    """Whether something was to happen at a moment that never came."""
    return bool(_awaited)


def _limit(which: int, value: int) -> None:
    resource.setrlimit(which, (value, resource.getrlimit(which)[1]))


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _join_group(job: Job) -> None:
    """Enter a control group and lower a limit of it: job.paths is (group, file of the limit)."""
    folder, limit = job.paths
    group = Path(folder)
    # As it was before a load that has left it.
    (group / limit).write_text("-1" if limit == "memory.limit_in_bytes" else "max")
    (group / "cgroup.procs").write_text(str(os.getpid()))
    usage = {"memory.limit_in_bytes": "memory.usage_in_bytes", "memory.max": "memory.current"}
    present = _threads() if limit == "pids.max" else int((group / usage[limit]).read_text())
    (group / limit).write_text(str(present + job.value))


def _overpromise(_: Job) -> None:
    """A file system that has less room, when it comes to writing, than it said."""
    if sys.platform == "linux":
        os.posix_fallocate = lambda descriptor, offset, size: os.ftruncate(descriptor, offset + size)


def _write_back(job: Job) -> None:
    """Have what is packed written to the disk, and read from there again."""
    os.sync()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            there = os.readlink(f"/proc/self/fd/{name}").startswith(f"{job.spill_dir}/")
            if sys.platform == "linux" and there:
                os.posix_fadvise(int(name), 0, 0, os.POSIX_FADV_DONTNEED)


def fill_disk(folder: Path) -> None:
    with open(folder / FILLER, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(MB))


def _change_file(kind: str, target: str, other: str) -> None:
    if kind == "replaced":
        shutil.copy(other, target + ".new")
        os.replace(target + ".new", target)
    elif kind == "rewritten":
        with open(target, "r+b") as file, open(other, "rb") as new:
            shutil.copyfileobj(new, file)
    elif kind == "truncated":
        os.truncate(target, os.path.getsize(target) // 2)
    elif kind == "emptied":
        os.truncate(target, 0)
    else:
        with open(target, "ab") as file:
            file.write(bytes(mmap.PAGESIZE))


def _change_source(job: Job) -> None:
    """job.paths is (kind, moment, file to change, file with other content)."""
    kind, moment, target, other = job.paths
    change = partial(_change_file, kind, target, other)
    # Before the session, weights are packed.
    moments = {"while packing": _PACKING, "before packing": "pack", "before the session": "assemble"}
    _at(moments[moment], change)


BREAKS: Mapping[str, Callable[[Job], object]] = {
    "file size": lambda job: _limit(resource.RLIMIT_FSIZE, job.value),
    # As in a program that has undone Python's own setting.
    "file size, deadly": lambda job: (signal.signal(signal.SIGXFSZ, signal.SIG_DFL), BREAKS["file size"](job)),
    # The number of a new descriptor is what counts; the one that lists them is closed again.
    "descriptors": lambda job: _limit(resource.RLIMIT_NOFILE, max(map(int, os.listdir("/proc/self/fd"))) + job.value),
    "addresses": lambda job: _limit(resource.RLIMIT_AS, host.sizes_of()["VmSize"] + job.value),
    "data": lambda job: _limit(resource.RLIMIT_DATA, host.sizes_of()["VmData"] + job.value),
    "threads": lambda job: _limit(resource.RLIMIT_NPROC, _threads() + job.value),
    "group": _join_group,
    "overpromise": _overpromise,
    "write back": lambda job: _at(_PACKED, partial(_write_back, job)),
    # With a session alive.
    "fill later": lambda job: _at("match", bool, partial(fill_disk, Path(job.spill_dir or ""))),
    "interrupt packing": lambda job: _at(_PACKING, partial(os.kill, os.getpid(), signal.SIGINT)),
    "interrupt initialization": lambda job: _at(
        "create session", threading.Timer(job.value / 1000, os.kill, (os.getpid(), signal.SIGINT)).start
    ),
    "terminate packing": lambda job: _at(_PACKING, partial(os.kill, os.getpid(), signal.SIGTERM)),
    "source": _change_source,
}
"""How a process breaks things for itself, by the names that jobs call them."""
