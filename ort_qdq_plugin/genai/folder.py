"""The folder that onnxruntime-genai reads in place of the model's own: another configuration, and links to everything else.

It is temporary, and locked while its process lives. A process that makes one removes those that killed processes left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping

from ort_qdq_plugin.genai.config import CONFIG_NAME
from ort_qdq_plugin.memory.buffer import spill_directories
from ort_qdq_plugin.system.platform import files

__all__ = ["ConfigFolder", "new_folder"]

_PREFIX = "ort-qdq-genai-"
_RANDOM_BYTES = 8


class ConfigFolder:
    """A folder that is removed when this object is closed or garbage-collected."""

    def __init__(self, path: str, folder: files.Folder) -> None:
        self.path = path
        self._folder: files.Folder | None = folder
        self._owner = os.getpid()

    def fill(self, original: str, config: bytes, models: Mapping[str, str]) -> None:
        """Write the configuration, and link all else in the model's folder, `original`, and the folders of fused models.

        `models` are names of links -> the folders that they lead to. Raises OSError if a file cannot be written or linked.
        """
        original = os.path.abspath(original)
        with os.scandir(original) as found:
            links = {item.name: item.path for item in found if item.name != CONFIG_NAME}
        for name, target in {**links, **models}.items():
            os.symlink(target, os.path.join(self.path, name))
        with open(os.path.join(self.path, CONFIG_NAME), "xb") as file:
            file.write(config)

    def close(self) -> None:
        """Remove it. In a forked child only the descriptor is closed: the folder is the parent's."""
        folder, self._folder = self._folder, None
        if folder is not None:
            if self._owner == os.getpid():
                shutil.rmtree(self.path, ignore_errors=True)
            folder.close()

    def __del__(self) -> None:
        self.close()


def new_folder(spill_dir: str | None, like: str) -> ConfigFolder:
    """A new temporary folder of mode 0700, in this directory or one of the system's own; those of ended processes go.

    A directory on the file system of the path `like` is preferred: copies of files there may share their blocks. None is
    taken in which other users could replace the folder.

    Raises:
        OSError: It cannot be made.
    """
    device = os.stat(like).st_dev
    problem: OSError = FileNotFoundError("no directory for temporary files")
    for directory in sorted(spill_directories(spill_dir), key=lambda path: _device(path) != device):
        try:
            real = files.safe_directory(directory)
            _sweep(real)
            return _made_in(real)
        except OSError as error:
            problem = error
    text = f"no folder for the prepared model can be made (spill_dir or TMPDIR may name a place): {problem.strerror}"
    raise OSError(problem.errno or errno.ENOENT, text, problem.filename) from problem


def _device(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_dev
    return -1


def _made_in(directory: str) -> ConfigFolder:
    while True:
        path = os.path.join(directory, f"{_PREFIX}{os.urandom(_RANDOM_BYTES).hex()}")
        os.mkdir(path, 0o700)
        # Until it is locked, another process may remove it as one that was left behind.
        with contextlib.suppress(FileNotFoundError):
            folder = files.Folder(path)
            files.lock(folder)
            if os.path.exists(path):
                return ConfigFolder(path, folder)
            folder.close()


def _sweep(directory: str) -> None:
    """Remove this user's folders whose processes have ended."""
    with os.scandir(directory) as found:
        paths = [item.path for item in found if item.name.startswith(_PREFIX)]
    for path in paths:
        # What is no folder cannot be opened as one.
        with contextlib.suppress(OSError), contextlib.closing(files.Folder(path)) as folder:
            if files.is_own(folder.status()) and files.try_lock(folder):
                shutil.rmtree(path, ignore_errors=True)
