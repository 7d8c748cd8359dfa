"""The folder that onnxruntime-genai is given in place of the model's own: another configuration, links of everything else.

It is temporary. A lock on it, which ends with its process, tells others whether it is in use: who makes the next one removes
those of processes that were killed.
"""

from __future__ import annotations

import contextlib
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
    """A folder that is removed when this object goes, or is closed.

    Attributes:
        path: Of the folder.
    """

    def __init__(self, path: str, folder: files.Folder) -> None:
        self.path = path
        self._folder: files.Folder | None = folder
        self._owner = os.getpid()

    def fill(self, original: str, config: bytes, models: Mapping[str, str]) -> None:
        """Put the configuration there, links of all other files of the model's folder, and of the folders of its models.

        Args:
            original: The model's folder.
            config: The configuration.
            models: Name -> folder that is to be found under it.

        Raises:
            OSError: It cannot be done.
        """
        original = os.path.abspath(original)
        with os.scandir(original) as found:
            links = {item.name: item.path for item in found if item.name != CONFIG_NAME}
        for name, target in {**links, **models}.items():
            os.symlink(target, os.path.join(self.path, name))
        with open(os.path.join(self.path, CONFIG_NAME), "xb") as file:
            file.write(config)

    def close(self) -> None:
        """Remove it. A process that was forked meanwhile only lets go of it."""
        folder, self._folder = self._folder, None
        if folder is not None:
            if self._owner == os.getpid():
                shutil.rmtree(self.path, ignore_errors=True)
            folder.close()

    def __del__(self) -> None:
        self.close()


def new_folder(spill_dir: str | None, like: str) -> ConfigFolder:
    """A new temporary folder of mode 0700. Those of processes that are gone are removed.

    Args:
        spill_dir: Where temporary files go; None for the system's own directories.
        like: A path on the file system that it should rather be on: then files there can be linked.

    Raises:
        OSError: None can be had.
    """
    device = os.stat(like).st_dev
    problem: OSError = FileNotFoundError("no directory for temporary files")
    for directory in sorted(spill_directories(spill_dir), key=lambda path: _device(path) != device):
        try:
            real = os.path.realpath(directory)
            _sweep(real)
            return _made_in(real)
        except OSError as error:
            problem = error
    raise problem


def _device(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_dev
    return -1


def _made_in(directory: str) -> ConfigFolder:
    while True:
        path = os.path.join(directory, f"{_PREFIX}{os.urandom(_RANDOM_BYTES).hex()}")
        os.mkdir(path, 0o700)
        # Until it is locked, another process may take it for one that was left behind.
        with contextlib.suppress(FileNotFoundError):
            folder = files.Folder(path)
            files.lock(folder)
            if os.path.exists(path):
                return ConfigFolder(path, folder)
            folder.close()


def _sweep(directory: str) -> None:
    """Remove this user's folders whose processes are gone."""
    with os.scandir(directory) as found:
        paths = [item.path for item in found if item.name.startswith(_PREFIX)]
    for path in paths:
        # What is no folder cannot be opened as one.
        with contextlib.suppress(OSError), contextlib.closing(files.Folder(path)) as folder:
            if files.is_own(folder.status()) and files.try_lock(folder):
                shutil.rmtree(path, ignore_errors=True)
