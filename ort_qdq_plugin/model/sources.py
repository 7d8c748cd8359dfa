"""Where a model's bytes are: a file, or memory of the caller's; and which files a model may name."""

from __future__ import annotations

import _thread
import errno
import mmap
import os
from contextlib import suppress
from typing import Protocol

from ort_qdq_plugin.errors import ExternalDataError, ModelError, SourceChangedError, SourceUnreadableError
from ort_qdq_plugin.model.wire import InMemory
from ort_qdq_plugin.system.platform import files, host

__all__ = ["ByteSource", "ExternalFiles", "FileSource", "MemorySource"]

_MAX_LOCATION = 4096  # characters: Linux's PATH_MAX
_MAX_SHOWN = 300  # characters of a location, in an error that thousands of nodes may have


class ByteSource(Protocol):
    """A container of bytes that tensors refer into: a model's file, an external data file, or memory."""

    @property
    def name(self) -> str:
        """What error messages call this source."""

    @property
    def size(self) -> int:
        """Length in bytes, as it was when the source was opened."""

    @property
    def is_stored(self) -> bool:
        """Whether the bytes are there, for anybody to use. Otherwise they are computed when they are read."""

    @property
    def identity(self) -> object:
        """Equal for sources whose bytes are the same ones."""

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes at `offset`.

        Raises:
            SourceChangedError: The source ends before.
            SourceUnreadableError, OSError: The bytes cannot be read.
        """

    def check_unchanged(self) -> None:
        """Raise SourceChangedError unless the source is still what was opened."""

    def buffer(self) -> mmap.mmap | bytes:
        """All bytes as one read-only buffer that ONNX Runtime can borrow.

        Raises:
            SourceChangedError, OSError: They cannot be mapped.
        """

    def close(self) -> None:
        """Close what is open for reading. Buffers that were handed out stay valid."""


# A small tensor inside the model becomes a new source each time it is located. So sources below this size count as the same
# if their bytes are equal.
_COMPARED_BYTES = 1 << 20


class MemorySource(InMemory):
    """Bytes that the caller, or a message, owns."""

    is_stored = True

    @property
    def identity(self) -> object:
        return self._data if self.size < _COMPARED_BYTES else id(self)

    def check_unchanged(self) -> None:
        return None

    def is_still(self, status: os.stat_result | None) -> bool:
        """Whether it is what had this status: none, since it is no file."""
        return status is None

    def buffer(self) -> bytes:
        return self._data

    def close(self) -> None:
        return None


class FileSource:
    """A regular file. It is held open, so that all reads see the same file even if another one takes its path.

    Reads are system calls, never accesses to a mapping: if the file shrinks, they give an error instead of SIGBUS.

    Raises:
        ModelError: The path is no regular file.
        OSError: The file cannot be opened.
    """

    is_stored = True

    def __init__(self, path: str) -> None:
        self.name = path
        try:
            self._file = files.open_to_read(path, follow_link=True)
        except files.NotRegularError:
            raise ModelError(f"{path}: {_instead_of_a_file(path)}") from None
        self.status = os.fstat(self._file.fileno())
        self.size = self.status.st_size
        self.names: set[str] = set()  # paths by which the model's tensors name it, symbolic links not followed
        self._mapping: mmap.mmap | None = None
        self._lock = _thread.allocate_lock()

    @property
    def identity(self) -> object:
        return id(self)

    @staticmethod
    def _identity_of(status: os.stat_result) -> tuple[int, ...]:
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def read_into(self, offset: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            try:
                count = files.read_at(self._file, offset + done, target[done:])
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                raise SourceUnreadableError(errno.EIO, f"byte {offset + done} cannot be read", self.name) from None
            if count == 0:
                raise SourceChangedError(f"{self.name}: ends at {offset + done} bytes, {len(target) - done} more expected")
            done += count

    def is_still(self, status: os.stat_result | None) -> bool:
        """Whether it is the file that had this status, and has not changed since."""
        return status is not None and self._identity_of(status) == self._identity_of(self.status)

    def check_unchanged(self) -> None:
        if not self.is_still(os.fstat(self._file.fileno())):
            raise SourceChangedError(f"{self.name}: changed while it was being loaded")

    def buffer(self) -> mmap.mmap:
        """A read-only shared mapping of the whole file. It is made once and stays valid when the descriptor is closed."""
        with self._lock:
            if self._mapping is None:
                try:
                    self._mapping = host.map_file(self._file, self.size)
                except ValueError:
                    raise SourceChangedError(f"{self.name}: has less than {self.size} bytes by now") from None
            return self._mapping

    def close(self) -> None:
        """Close the file. A mapping that was handed out stays valid until nothing refers to it any more."""
        self._file.close()


def _instead_of_a_file(path: str) -> str:
    """What is at a path where no regular file is, in words."""
    if not os.path.isdir(path):
        return "not a regular file"
    if os.path.isfile(os.path.join(path, "genai_config.json")):
        return "a folder of onnxruntime-genai, not an .onnx file: name one in it, or use ort_qdq_plugin.genai"
    return "a folder, not an .onnx file: name one in it"


class ExternalFiles:
    """The external data files of one model, opened when they are first needed, under ONNX Runtime's own rules.

    A location must be relative. With symbolic links followed it must lead into the folder that holds the real model file: a
    model that is itself a link, as in Hugging Face's cache, may use what lies beside the file that it links to.
    """

    def __init__(self, base: str | None, directory: str | None) -> None:
        self._base = base
        self._directory = directory
        self._sources: dict[str, FileSource] = {}  # by location as given, and by path

    @classmethod
    def beside(cls, model_path: str) -> ExternalFiles:
        """Files that a model at `model_path` may name."""
        return cls(os.path.dirname(os.path.abspath(model_path)), os.path.dirname(os.path.realpath(model_path)))

    @classmethod
    def within(cls, folder: str) -> ExternalFiles:
        """Files below `folder` (``session.model_external_initializers_file_folder_path``)."""
        return cls(os.path.abspath(folder), os.path.realpath(folder))

    @classmethod
    def none(cls) -> ExternalFiles:
        """No file at all: a model given as bytes without a folder."""
        return cls(None, None)

    @property
    def opened(self) -> tuple[FileSource, ...]:
        """The files that were opened so far, each once."""
        return tuple(dict.fromkeys(self._sources.values()))

    def open(self, location: str) -> FileSource:
        """The file that a tensor's ``location`` names.

        Raises:
            ExternalDataError: ONNX Runtime would refuse the location, or the file cannot be opened.
        """
        source = self._sources.get(location)
        if source is None:
            named = self._named(location)
            try:
                # Strict: resolving stops at the first part of the path that is missing, even if thousands of parts follow.
                path = os.path.realpath(named, strict=True)
                self._check_within(location, path)
                source = self._sources.get(path) or FileSource(path)
            except ExternalDataError:
                raise
            except FileNotFoundError:
                raise ExternalDataError(
                    f"external data {_shown(named)} does not exist: weights of the model are in it, so it must lie there"
                ) from None
            except OSError as error:
                raise ExternalDataError(f"external data {_shown(named)} cannot be opened: {error.strerror}") from None
            except ModelError:
                raise ExternalDataError(f"external data {_shown(named)} is not a regular file") from None
            self._sources[location] = self._sources[path] = source
            source.names.add(named)
        return source

    def _named(self, location: str) -> str:
        """The path that a location stands for, symbolic links not followed."""
        if self._base is None:
            raise ExternalDataError(
                f"external data {_shown(location)!r} of a model without a folder, as one given as bytes is: give its path, "
                "or name the folder in session.model_external_initializers_file_folder_path"
            )
        if not location or len(location) > _MAX_LOCATION or "\0" in location or not files.is_relative(location):
            raise ExternalDataError(f"external data location {_shown(location)!r} is not a relative path")
        return os.path.join(self._base, location)

    def _check_within(self, location: str, path: str) -> None:
        if not _is_within(path, self._directory or ""):
            raise ExternalDataError(f"external data location {_shown(location)!r} leaves the model's folder")


def _shown(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _is_within(path: str, folder: str) -> bool:
    """Whether a real path is that of a real folder, or below it."""
    with suppress(ValueError):  # they have no folder in common: another drive, or a device
        return os.path.normcase(os.path.commonpath([path, folder])) == os.path.normcase(folder)
    return False
