"""Disks that are full or fail, and directories for packed weights that are missing, not permitted, or not safe."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from conformance.faults.breaks import fill_disk
from conformance.faults.job import MB, Verdict
from conformance.faults.scene import UNUSED_UID, Fault, PairName, Scene, Skipped, needs_root

__all__ = ["DIRECTORIES", "DISKS"]

_Place = Callable[[Scene], AbstractContextManager[Path]]
"""Makes a directory for packed weights, with something about it."""
_BLOCK = 4096  # in which filefrag is asked to count


def _command(*words: object) -> str:
    """What a command prints; skips the row where it is missing, or fails."""
    try:
        return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise Skipped(f"needs {words[0]}") from None
    except subprocess.CalledProcessError as error:
        raise Skipped(f"{words[0]} fails here: {error.stderr.strip()[:200]}") from None


@contextmanager
def _mounted_at(folder: Path, *options: object) -> Iterator[Path]:
    """A file system, mounted for as long as it is needed."""
    needs_root()
    folder.mkdir(exist_ok=True)
    try:
        _command("mount", *options, folder)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    finally:
        folder.rmdir()


def _tmpfs(size: str, *options: str) -> _Place:
    """A file system in memory."""
    options = ("-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs")
    return lambda scene: _mounted_at(scene.folder / "tmpfs", *options)


@contextmanager
def _ext4_image(image: Path, megabytes: int) -> Iterator[Path]:
    """A file that holds a file system, to be mounted by `loop`."""
    needs_root()
    try:
        image.touch()
        os.truncate(image, megabytes * MB)
        _command("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", 0, image)
        yield image
    finally:
        image.unlink(missing_ok=True)


@contextmanager
def _bad_disk(scene: Scene, name: PairName, victim: str) -> Iterator[Path]:
    """A file system with the model's files, whose blocks from the middle of file `victim` on cannot be read."""
    pair = scene.pair(name)
    size = sum(path.stat().st_size for path in pair.qdq.parent.iterdir()) // MB
    with _ext4_image(scene.folder / "image", 2 * size + 16) as image:
        with _mounted_at(scene.folder / "disk", "-o", "loop", image) as folder:
            # The victim last, so that it lies behind what is to stay readable.
            for path in sorted(pair.qdq.parent.glob("qdq*"), key=lambda path: path.name == victim):
                shutil.copy(path, folder)
            os.sync()
            out = _command("filefrag", "-v", f"-b{_BLOCK}", folder / victim)
        lines = (line.split(":") for line in out.splitlines() if line.strip()[:1].isdigit())
        first, length = max((int(physical.split("..")[0]), int(length)) for _, _, physical, length, *_ in lines)
        with _mounted_at(scene.folder / "disk", "-o", "ro,loop", image) as folder:
            os.truncate(image, (first + length // 2) * _BLOCK)
            yield folder


def _spilling_to(place: _Place, **changes: Any) -> Callable[[Scene], list[Verdict]]:

    def loads(scene: Scene) -> list[Verdict]:
        with place(scene) as spill:
            return scene.both_routes(spill_dir=str(spill), **changes)

    return loads


@contextmanager
def _full_ext4(scene: Scene) -> Iterator[Path]:
    with _ext4_image(scene.folder / "image", 8) as image, _mounted_at(scene.folder / "disk", "-o", "loop", image) as spill:
        fill_disk(spill)
        yield spill


@contextmanager
def _ext4_on_a_small_disk(scene: Scene) -> Iterator[Path]:
    with (
        _tmpfs("12m")(scene) as disk,
        _ext4_image(disk / "image", 64) as image,
        _mounted_at(scene.folder / "disk", "-o", "loop", image) as spill,
    ):
        yield spill


def _filled_later(scene: Scene) -> list[Verdict]:
    with _tmpfs("40m")(scene) as spill:
        job = scene.job(spill_dir=str(spill), breaks="fill later", again=True)
        return [scene.compare(job, scene.results_of("packed"))]


def _on_bad_disk(scene: Scene, name: PairName, victim: str) -> list[Verdict]:
    """Every route, with the end of one of the model's files unreadable."""
    with _bad_disk(scene, name, victim) as folder:
        return scene.both_routes(name, model=str(folder / "qdq.onnx"))


_CUT_OFF = "loop-mounted ext4, image cut off within the external data"
DISKS = (
    Fault("ENOSPC", "spill directory on a 1 MB tmpfs", "reserving", _spilling_to(_tmpfs("1m")), quick=True),
    Fault("ENOSPC, full disk", "spill directory on a full loop-mounted ext4", "reserving", _spilling_to(_full_ext4)),
    Fault("ENOSPC when writing", "1 MB tmpfs; the reservation is made a promise", "packing",
          _spilling_to(_tmpfs("1m"), breaks="overpromise"), quick=True),
    Fault("ENOSPC later", "tmpfs is filled while a session lives, then a second load", "reserving",
          _filled_later, quick=True),
    Fault("EIO, packed weights", _CUT_OFF, "packing",
          partial(_on_bad_disk, name="packed", victim="qdq.onnx.data")),
    Fault("EIO, weights in place", _CUT_OFF, "initialization",
          partial(_on_bad_disk, name="in place", victim="qdq.onnx.data")),
    Fault("EIO, the model's file", "loop-mounted ext4, image cut off within it", "opening, packing",
          partial(_on_bad_disk, name="inline", victim="qdq.onnx")),
    Fault("EIO, spill file", "64 MB ext4, loop-mounted from an image on a 12 MB tmpfs; pages go", "packing",
          _spilling_to(_ext4_on_a_small_disk, breaks="write back")),
)  # fmt: skip


_FILE, _NOWHERE = "packed/qdq.onnx", "nowhere"


def _at(name: str, mode: int = 0) -> _Place:
    """A path in the scene's folder, of a directory that is made with this mode if one is given."""

    def place(scene: Scene) -> AbstractContextManager[Path]:
        path = scene.folder / name
        if mode:
            path.mkdir(exist_ok=True)
            path.chmod(mode)
        return nullcontext(path)

    return place


def _bad_tmpdir(scene: Scene) -> list[Verdict]:
    verdicts = []
    for name in (_FILE, _NOWHERE):
        verdicts += scene.both_routes(spill_dir=None, temporary=str(scene.folder / name))
    return verdicts


DIRECTORIES = (
    Fault("read-only directory", "tmpfs mounted read-only", "reserving", _spilling_to(_tmpfs("64m", "ro")), quick=True),
    Fault("missing directory", "spill_dir does not exist", "reserving", _spilling_to(_at(_NOWHERE)), quick=True),
    Fault("directory is a file", "spill_dir is a file", "reserving", _spilling_to(_at(_FILE)), quick=True),
    Fault("TMPDIR unusable", "TMPDIR is a file, or missing", "reserving", _bad_tmpdir),
    Fault("no permission", "spill_dir of mode 0700 of another user", "reserving",
          _spilling_to(_at("closed", 0o700), uid=UNUSED_UID), quick=True),
    Fault("unsafe directory", "spill_dir that others can write to, not sticky", "naming",
          _spilling_to(_at("unsafe", 0o777)), quick=True),
)  # fmt: skip
