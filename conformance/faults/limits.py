"""Limits of the process: file sizes, descriptors, memory and threads."""

from __future__ import annotations

from collections.abc import Sequence

from conformance.faults.fault import Chapter
from conformance.faults.file_systems import needs_other_users
from conformance.faults.job import MB
from conformance.faults.judging import Verdict
from conformance.faults.scene import TRIES, UNUSED_UID, Scene

__all__ = ["CHAPTER"]

CHAPTER = Chapter()


# What this package's code, what it imports and what it has freed again take while stock ONNX Runtime loads.
_DATA_SLACK = (8 * MB, 16 * MB, 24 * MB, 32 * MB)
_ADDRESS_SLACK = (16 * MB, 80 * MB, 144 * MB)
# What a want of memory is called depends on where it is noticed.
_MEMORY_ERRORS = frozenset({"MemoryError", "RuntimeError", "RuntimeException", "Fail"})


@CHAPTER.fault("EFBIG", "RLIMIT_FSIZE of 100 kB", "reserving", quick=True)
def _small_files(scene: Scene) -> list[Verdict]:
    return scene.both_routes(scene.spill, breaks="file size", value=100_000)


@CHAPTER.fault("SIGXFSZ", "RLIMIT_FSIZE of 100 kB and the signal's default action", "reserving", quick=True)
def _deadly_files(scene: Scene) -> list[Verdict]:
    return scene.both_routes(scene.spill, breaks="file size, deadly", value=100_000)


@CHAPTER.fault("EMFILE", "RLIMIT_NOFILE, room for 0 to 12 descriptors", "every one that opens a file")
def _few_descriptors(scene: Scene) -> list[Verdict]:
    results = scene.results_of(scene.k_major, scene.n_major)
    return [
        scene.compare(scene.job(pair, loader=loader, breaks="descriptors", value=value), results)
        for pair, loader in scene.contenders
        for value in range(13)
    ]


@CHAPTER.fault("RLIMIT_AS", "what is mapped after the imports and 0 to 384 MB; stock with up to 144 MB less", "all of them")
def _few_addresses(scene: Scene) -> list[Verdict]:
    return _ladder(scene, "addresses", range(0, 400 * MB, 16 * MB), _ADDRESS_SLACK)


@CHAPTER.fault("RLIMIT_DATA", "what is used after the imports and 0 to 192 MB; stock with up to 32 MB less", "all of them")
def _little_data(scene: Scene) -> list[Verdict]:
    return _ladder(scene, "data", range(0, 200 * MB, 8 * MB), _DATA_SLACK)


def _ladder(scene: Scene, breaks: str, values: Sequence[int], slack: Sequence[int]) -> list[Verdict]:
    results = scene.results_of(scene.k_major, scene.n_major)
    return [
        scene.compare(
            scene.job(pair, loader=loader, breaks=breaks, value=value),
            results,
            tries=TRIES,
            slack=slack,
            alike=_MEMORY_ERRORS,
        )
        for pair, loader in scene.contenders
        for value in values
    ]


@CHAPTER.fault(
    "no more threads", "RLIMIT_NPROC as an ordinary user, room for 0 to 6; stock with up to 4 less", "starting threads"
)
def _few_threads(scene: Scene) -> list[Verdict]:
    needs_other_users()
    results = scene.results_of(scene.k_major, scene.n_major)
    return [
        scene.compare(
            scene.job(pair, loader=loader, breaks="threads", value=value, uid=UNUSED_UID, threads=threads),
            results,
            slack=range(1, 5),  # the thread that trims, and those that have packed and are not quite gone
        )
        for pair, loader in scene.contenders
        for threads in (1, 3)
        for value in range(7)
    ]
