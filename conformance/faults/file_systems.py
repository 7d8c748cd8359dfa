"""File systems that are small, read-only or broken."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.big_models import Pair
from conformance.faults.job import MB
from conformance.faults.scene import Scene, Skipped

__all__ = ["bad_disk", "ext4_image", "mounted_at", "needs_other_users", "needs_root", "small_tmpfs"]

_BLOCK = 4096  # in which filefrag is asked to count


class _Extent(NamedTuple):
    """Blocks of a file that lie one behind the other on the disk."""

    first: int
    length: int


def needs_root() -> None:
    """Skips the row for anybody else."""
    if os.geteuid() != 0:
        raise Skipped("needs root")


def needs_other_users() -> None:
    """Skips the row where root is all there is."""
    needs_root()
    if Path("/proc/self/uid_map").read_text().split()[2] == "1":
        raise Skipped("needs other users, this namespace has none")


def _needs(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise Skipped(f"needs {', '.join(missing)}")


def _command(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"{words[0]} fails here: {done.stderr.strip()[:200]}")


@contextmanager
def mounted_at(folder: Path, *options: object) -> Iterator[Path]:
    """A file system, mounted for as long as it is needed."""
    needs_root()
    _needs("mount", "umount")
    folder.mkdir(exist_ok=True)
    try:
        _command("mount", *options, folder)
    except Skipped:
        folder.rmdir()
        raise
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def small_tmpfs(scene: Scene, size: str, *options: str) -> Any:
    """A file system in memory."""
    return mounted_at(scene.folder / "tmpfs", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs")


@contextmanager
def ext4_image(image: Path, megabytes: int) -> Iterator[Path]:
    """A file that holds a file system, to be mounted by `loop`."""
    needs_root()
    _needs("mkfs.ext4", "losetup")
    try:
        with open(image, "wb") as file:
            file.truncate(megabytes * MB)
        _command("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", 0, image)
        yield image
    finally:
        image.unlink(missing_ok=True)


@contextmanager
def bad_disk(scene: Scene, pair: Pair, victim: str) -> Iterator[Path]:
    """A file system with the model's files, whose blocks from the middle of file `victim` on cannot be read."""
    _needs("filefrag")
    size = sum(path.stat().st_size for path in pair.qdq.parent.iterdir()) // MB
    with ext4_image(scene.folder / "image", 2 * size + 16) as image:
        with mounted_at(scene.folder / "disk", "-o", "loop", image) as folder:
            # The victim last, so that it lies behind what is to stay readable.
            for path in sorted(pair.qdq.parent.glob("qdq*"), key=lambda path: path.name == victim):
                shutil.copy(path, folder)
            os.sync()
            out = subprocess.run(
                ["filefrag", "-v", f"-b{_BLOCK}", str(folder / victim)], capture_output=True, text=True, check=True
            ).stdout
        lines = (line.split(":") for line in out.splitlines() if line.strip()[:1].isdigit())
        extents = [_Extent(int(physical.split("..")[0]), int(length)) for _, _, physical, length, *_ in lines]
        last = max(extents)
        with mounted_at(scene.folder / "disk", "-o", "ro,loop", image) as folder:
            os.truncate(image, (last.first + last.length // 2) * _BLOCK)
            yield folder
