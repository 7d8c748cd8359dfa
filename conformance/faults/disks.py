"""Disks that are full, and disks that fail."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from benchmarks.big_models import Pair
from conformance.faults.breaks import fill_disk
from conformance.faults.fault import Chapter
from conformance.faults.file_systems import bad_disk, ext4_image, mounted_at, small_tmpfs
from conformance.faults.judging import Verdict
from conformance.faults.scene import Scene

__all__ = ["CHAPTER"]

CHAPTER = Chapter()


@CHAPTER.fault("ENOSPC", "spill directory on a 1 MB tmpfs", "reserving", quick=True)
def _small_tmpfs(scene: Scene) -> list[Verdict]:
    with small_tmpfs(scene, "1m") as spill:
        return scene.both_routes(spill)


@CHAPTER.fault("ENOSPC, full disk", "spill directory on a full loop-mounted ext4", "reserving")
def _full_ext4(scene: Scene) -> list[Verdict]:
    with ext4_image(scene.folder / "image", 8) as image, mounted_at(scene.folder / "disk", "-o", "loop", image) as spill:
        fill_disk(spill)
        return scene.both_routes(spill)


@CHAPTER.fault("ENOSPC when writing", "1 MB tmpfs; the reservation is made a promise", "packing", quick=True)
def _overpromised(scene: Scene) -> list[Verdict]:
    with small_tmpfs(scene, "1m") as spill:
        return scene.both_routes(spill, breaks="overpromise")


@CHAPTER.fault("ENOSPC later", "tmpfs is filled while a session lives, then a second load", "reserving", quick=True)
def _filled_later(scene: Scene) -> list[Verdict]:
    with small_tmpfs(scene, "40m") as spill:
        results = scene.results_of(scene.k_major)
        return [scene.compare(scene.job(spill_dir=str(spill), breaks="fill later", again=True), results, spill=spill)]


@CHAPTER.fault("EIO, packed weights", "loop-mounted ext4, image cut off within the external data", "packing")
def _bad_packed(scene: Scene) -> list[Verdict]:
    return _on_bad_disk(scene, scene.k_major, "qdq.onnx.data")


@CHAPTER.fault("EIO, weights in place", "loop-mounted ext4, image cut off within the external data", "initialization")
def _bad_in_place(scene: Scene) -> list[Verdict]:
    return _on_bad_disk(scene, scene.n_major, "qdq.onnx.data")


@CHAPTER.fault("EIO, the model's file", "loop-mounted ext4, image cut off within it", "opening, packing")
def _bad_inline(scene: Scene) -> list[Verdict]:
    return _on_bad_disk(scene, scene.inline, "qdq.onnx")


def _on_bad_disk(scene: Scene, pair: Pair, victim: str) -> list[Verdict]:
    results = scene.results_of(pair)
    with bad_disk(scene, pair, victim) as folder:
        job = scene.job(model=str(folder / "qdq.onnx"))
        return [scene.compare(replace(job, loader=loader), results) for loader in scene.loaders]


@CHAPTER.fault("EIO, spill file", "64 MB ext4, loop-mounted from an image on a 12 MB tmpfs; pages go", "packing")
def _bad_spill(scene: Scene) -> list[Verdict]:
    with ExitStack() as undo:
        image = undo.enter_context(ext4_image(undo.enter_context(small_tmpfs(scene, "12m")) / "image", 64))
        spill = undo.enter_context(mounted_at(scene.folder / "disk", "-o", "loop", image))
        return scene.both_routes(spill, breaks="write back")
