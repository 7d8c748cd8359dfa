"""Directories for packed weights that are missing, not permitted, or not safe."""

from __future__ import annotations

from conformance.faults.fault import Chapter
from conformance.faults.file_systems import needs_other_users, small_tmpfs
from conformance.faults.judging import Verdict
from conformance.faults.scene import UNUSED_UID, Scene

__all__ = ["CHAPTER"]

CHAPTER = Chapter()


@CHAPTER.fault("read-only directory", "tmpfs mounted read-only", "reserving", quick=True)
def _read_only(scene: Scene) -> list[Verdict]:
    with small_tmpfs(scene, "64m", "ro") as spill:
        return scene.both_routes(spill)


@CHAPTER.fault("missing directory", "spill_dir does not exist", "reserving", quick=True)
def _missing(scene: Scene) -> list[Verdict]:
    return scene.both_routes(scene.folder / "nowhere")


@CHAPTER.fault("directory is a file", "spill_dir is a file", "reserving", quick=True)
def _is_a_file(scene: Scene) -> list[Verdict]:
    file = scene.folder / "file"
    file.write_bytes(b"")
    return scene.both_routes(file)


@CHAPTER.fault("TMPDIR unusable", "TMPDIR is a file, or missing", "reserving")
def _bad_tmpdir(scene: Scene) -> list[Verdict]:
    results = scene.results_of(scene.k_major)
    file = scene.folder / "file"
    file.write_bytes(b"")
    return [
        scene.compare(scene.job(spill_dir=None, loader=loader), results, temporary=temporary)
        for temporary in (file, scene.folder / "nowhere")
        for loader in scene.loaders
    ]


@CHAPTER.fault("no permission", "spill_dir of mode 0700 of another user", "reserving", quick=True)
def _no_permission(scene: Scene) -> list[Verdict]:
    needs_other_users()
    closed = scene.folder / "closed"
    closed.mkdir(mode=0o700, exist_ok=True)
    return scene.both_routes(closed, uid=UNUSED_UID)


@CHAPTER.fault("unsafe directory", "spill_dir that others can write to, not sticky", "naming", quick=True)
def _unsafe(scene: Scene) -> list[Verdict]:
    unsafe = scene.folder / "unsafe"
    unsafe.mkdir(exist_ok=True)
    unsafe.chmod(0o777)
    return scene.both_routes(unsafe)
