"""What a process breaks for itself before it loads."""

from __future__ import annotations

import mmap
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from conformance.faults.job import MB, Job
from conformance.faults.moments import at_stage, once_packed, while_packing
from conformance.faults.processes import FILLER
from ort_qdq_plugin.system.platform import host

__all__ = ["BREAKS", "CHANGES", "MOMENTS", "QUICK_CHANGES", "TIMED", "fill_disk"]


def _limit(which: int, value: int) -> None:
    resource.setrlimit(which, (value, resource.getrlimit(which)[1]))


def _limit_file_size(job: Job) -> None:
    _limit(resource.RLIMIT_FSIZE, job.value)


def _limit_file_size_deadly(job: Job) -> None:
    """As in a program that has undone Python's own setting."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    _limit_file_size(job)


def _limit_descriptors(job: Job) -> None:
    # The number of a new descriptor is what counts; the one that lists them is closed again.
    _limit(resource.RLIMIT_NOFILE, max(map(int, os.listdir("/proc/self/fd"))) + job.value)


def _limit_addresses(job: Job) -> None:
    _limit(resource.RLIMIT_AS, host.sizes_of()["VmSize"] + job.value)


def _limit_data(job: Job) -> None:
    _limit(resource.RLIMIT_DATA, host.sizes_of()["VmData"] + job.value)


def _limit_threads(job: Job) -> None:
    _limit(resource.RLIMIT_NPROC, len(os.listdir("/proc/self/task")) + job.value)


def _join_group(job: Job) -> None:
    """Enter a control group and lower a limit of it: job.paths is (group, file of the limit)."""
    folder, limit = job.paths
    group = Path(folder)
    (group / "cgroup.procs").write_text(str(os.getpid()))
    present = {
        "memory.limit_in_bytes": lambda: int((group / "memory.usage_in_bytes").read_text()),
        "memory.max": lambda: int((group / "memory.current").read_text()),
        "pids.max": lambda: len(os.listdir("/proc/self/task")),
    }[limit]()
    (group / limit).write_text(str(present + job.value))


def _overpromise(_: Job) -> None:
    """A file system that has less room, when it comes to writing, than it said."""
    os.posix_fallocate = lambda descriptor, offset, size: os.ftruncate(descriptor, offset + size)


def _write_back(job: Job) -> None:
    """Have what is packed written to the disk, and read from there again."""

    def write_back() -> None:
        os.sync()
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}").startswith(f"{job.spill_dir}/"):
                    os.posix_fadvise(int(name), 0, 0, os.POSIX_FADV_DONTNEED)

    once_packed.append(write_back)


def _fill_when_loaded(job: Job) -> None:
    """Fill the disk once the first session is there."""
    at_stage("match", 2, lambda: fill_disk(Path(job.spill_dir or "")))


def fill_disk(folder: Path) -> None:
    """Fill the disk that the folder is on."""
    with open(folder / FILLER, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(MB))
        except OSError:
            return


def _interrupt_packing(_: Job) -> None:
    while_packing.append(lambda: os.kill(os.getpid(), signal.SIGINT))


def _interrupt_initialization(job: Job) -> None:
    def later() -> None:
        threading.Timer(job.value / 1000, os.kill, (os.getpid(), signal.SIGINT)).start()

    at_stage("create session", 1, later)


def _terminate_packing(_: Job) -> None:
    while_packing.append(lambda: os.kill(os.getpid(), signal.SIGTERM))


def _change_file(kind: str, target: str, other: str) -> None:
    """Do to the file what somebody else might."""
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


CHANGES = ("replaced", "rewritten", "truncated", "emptied", "grown")
QUICK_CHANGES = ("replaced", "rewritten", "truncated")
MOMENTS = ("before packing", "while packing", "before the session")


def _change_source(job: Job) -> None:
    """job.paths is (kind, moment, file to change, file with other content)."""
    kind, moment, target, other = job.paths
    change = partial(_change_file, kind, target, other)
    if moment == "while packing":
        while_packing.append(change)
    elif moment == "before packing":
        at_stage("pack", 1, change)
    else:
        # Once weights are packed.
        at_stage("assemble", 1, change)


BREAKS: dict[str, Callable[[Job], None]] = {
    "file size": _limit_file_size,
    "file size, deadly": _limit_file_size_deadly,
    "descriptors": _limit_descriptors,
    "addresses": _limit_addresses,
    "data": _limit_data,
    "threads": _limit_threads,
    "group": _join_group,
    "overpromise": _overpromise,
    "write back": _write_back,
    "fill later": _fill_when_loaded,
    "interrupt packing": _interrupt_packing,
    "interrupt initialization": _interrupt_initialization,
    "terminate packing": _terminate_packing,
    "source": _change_source,
}
"""How a process breaks things for itself, by the names that jobs call them."""
TIMED = frozenset(
    {"write back", "fill later", "interrupt packing", "interrupt initialization", "terminate packing", "source"}
)
"""Those that wait for a moment of the load."""
