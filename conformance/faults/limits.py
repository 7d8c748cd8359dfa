"""Limits of the process and of its control group: file sizes, descriptors, memory and threads."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from conformance.faults.job import MB, Verdict
from conformance.faults.scene import UNUSED_UID, Fault, Scene, Skipped, needs_root

__all__ = ["CONTROL_GROUPS", "LIMITS", "MEMORY_LIMITS", "control_group"]

MEMORY_LIMITS = ("memory.limit_in_bytes", "memory.max")
"""The file of a control group that limits memory, in either version of control groups."""

_TRIES = 3  # of loads that depend on how much memory a process happens to have
# What this package's code, what it imports and what it has freed again take while stock ONNX Runtime loads.
_DATA_SLACK = (8 * MB, 16 * MB, 24 * MB, 32 * MB)
_ADDRESS_SLACK = (16 * MB, 80 * MB, 144 * MB)
_THREAD_SLACK = range(1, 5)  # the thread that trims, and those that have packed and are not quite gone
# What a want of memory is called depends on where it is noticed.
_MEMORY: dict[str, Any] = {"tries": _TRIES, "alike": frozenset({"MemoryError", "RuntimeError", "RuntimeException", "Fail"})}


def _ladder(
    scene: Scene, breaks: str, values: Sequence[int], *, threads: Sequence[int] = (2,), uid: int = 0, **how: Any
) -> list[Verdict]:
    """Every model and route with one limit after another; `how` they are compared."""
    results = scene.results_of("packed", "in place")
    return [
        scene.compare(scene.job(name, loader=loader, breaks=breaks, value=value, uid=uid, threads=count), results, **how)
        for (name, loader), count, value in product(scene.contenders, threads, values)
    ]


LIMITS = (
    Fault("EFBIG", "RLIMIT_FSIZE of 100 kB", "reserving",
          lambda scene: scene.both_routes(breaks="file size", value=100_000), quick=True),
    Fault("SIGXFSZ", "RLIMIT_FSIZE of 100 kB and the signal's default action", "reserving",
          lambda scene: scene.both_routes(breaks="file size, deadly", value=100_000), quick=True),
    Fault("EMFILE", "RLIMIT_NOFILE, room for 0 to 12 descriptors", "every one that opens a file",
          partial(_ladder, breaks="descriptors", values=range(13))),
    Fault("RLIMIT_AS", "what is mapped after the imports and 0 to 384 MB; stock with up to 144 MB less", "all of them",
          partial(_ladder, breaks="addresses", values=range(0, 400 * MB, 16 * MB), slack=_ADDRESS_SLACK, **_MEMORY)),
    Fault("RLIMIT_DATA", "what is used after the imports and 0 to 192 MB; stock with up to 32 MB less", "all of them",
          partial(_ladder, breaks="data", values=range(0, 200 * MB, 8 * MB), slack=_DATA_SLACK, **_MEMORY)),
    Fault("no more threads", "RLIMIT_NPROC as an ordinary user, room for 0 to 6; stock with up to 4 less",
          "starting threads",
          partial(_ladder, breaks="threads", values=range(7), threads=(1, 3), uid=UNUSED_UID, slack=_THREAD_SLACK)),
)  # fmt: skip


@contextmanager
def control_group(controller: str, limits: Sequence[str]) -> Iterator[Path]:
    """The limit of a control group of our own, below the one this process is in."""
    needs_root()
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    entries = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    mine = next((path for _, names, path in entries if (unified and not names) or controller in names.split(",")), None)
    parent = Path("/sys/fs/cgroup") / ("" if unified else controller) / (mine or "/").lstrip("/")
    group = parent / f"ort-qdq-fault-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise Skipped(f"no control groups here: {error}") from None
    try:
        limit = next((group / name for name in limits if (group / name).exists()), None)
        if limit is None:
            raise Skipped(f"no {controller} controller here")
        yield limit
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:  # processes that have ended are counted a little longer
                time.sleep(0.05)


def _in_group(scene: Scene, controller: str, limits: Sequence[str], values: Sequence[int]) -> list[Verdict]:
    results = scene.results_of("packed", "in place")
    verdicts = []
    for (name, loader), value in product(scene.contenders, values):
        with control_group(controller, limits) as limit:
            paths = (str(limit.parent), limit.name)
            job = scene.job(name, loader=loader, breaks="group", value=value, paths=paths)
            verdicts.append(scene.compare(job, results, tries=_TRIES))
    return verdicts


CONTROL_GROUPS = (
    Fault("memory cgroup", "limit of 0 to 160 MB above what the group has after the imports", "all of them",
          partial(_in_group, controller="memory", limits=MEMORY_LIMITS,
                  values=range(0, 160 * MB, 8 * MB))),
    Fault("pids cgroup", "room for 0 to 8 threads", "starting threads",
          partial(_in_group, controller="pids", limits=("pids.max",), values=range(9))),
)  # fmt: skip
