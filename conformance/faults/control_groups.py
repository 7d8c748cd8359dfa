"""Limits of a control group."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from conformance.faults.fault import Chapter
from conformance.faults.file_systems import needs_root
from conformance.faults.job import MB
from conformance.faults.judging import Verdict
from conformance.faults.scene import TRIES, Scene, Skipped

__all__ = ["CHAPTER"]

CHAPTER = Chapter()


@contextmanager
def _control_group(controller: str) -> Iterator[Path]:
    """A control group of our own, below the one this process is in."""
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
        yield group
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:  # processes that have ended are counted a little longer
                time.sleep(0.05)


@CHAPTER.fault("memory cgroup", "limit of 0 to 160 MB above what the group has after the imports", "all of them")
def _small_group(scene: Scene) -> list[Verdict]:
    return _in_group(scene, "memory", ("memory.limit_in_bytes", "memory.max"), range(0, 160 * MB, 8 * MB))


@CHAPTER.fault("pids cgroup", "room for 0 to 8 threads", "starting threads", quick=False)
def _few_pids(scene: Scene) -> list[Verdict]:
    return _in_group(scene, "pids", ("pids.max",), range(9))


def _in_group(scene: Scene, controller: str, limits: Sequence[str], values: Sequence[int]) -> list[Verdict]:
    results = scene.results_of(scene.k_major, scene.n_major)
    verdicts = []
    for pair, loader in scene.contenders:
        for value in values:
            with _control_group(controller) as group:
                limit = next((name for name in limits if (group / name).exists()), None)
                if limit is None:
                    raise Skipped(f"no {controller} controller here")

                def unlimited(file: Path = group / limit) -> None:
                    file.write_text("-1" if file.name == "memory.limit_in_bytes" else "max")

                job = scene.job(pair, loader=loader, breaks="group", value=value, paths=(str(group), limit))
                verdicts.append(scene.compare(job, results, tries=TRIES, restore=unlimited))
    return verdicts
