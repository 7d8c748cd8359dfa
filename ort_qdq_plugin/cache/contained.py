"""Tensors that an entry's model uses in the model's own files, copied into a file of the entry: it then needs no other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack

from ort_qdq_plugin.cache.key import Identity
from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.model.messages import ModelProto, external_data, external_tensors, refer
from ort_qdq_plugin.model.sources import FileSource
from ort_qdq_plugin.system.platform import files

__all__ = ["DATA", "append", "contain", "open_again"]

DATA = "data.bin"
"""The file of the entry that has the copies."""

_ALIGNMENT = 4096  # of what is appended to a file, so that each piece can be mapped, and can share blocks, by itself


def contain(model: bytes, sources: Mapping[str, FileSource], folder: str) -> tuple[bytes, int]:
    """Copy what a serialized model uses of the model's own files into an entry's folder.

    Args:
        model: It refers to the sources by their locations, and to files that are in the folder already.
        sources: Location -> file of the model itself.
        folder: Where `DATA` is made, of mode 0600, if there is anything to copy.

    Returns:
        The model with references to the copies, and how many bytes were copied.

    Raises:
        SourceChangedError: A source has changed, or another file has its path by now.
        OSError: There is no room.
    """
    proto, copied = ModelProto.FromString(model), 0
    starts: dict[tuple[str, int, int], int] = {}
    with ExitStack() as opened:
        data = {location: opened.enter_context(open_again(source)) for location, source in sources.items()}
        for tensor in external_tensors(proto.graph):
            entries = external_data(tensor)
            location, offset, length = entries["location"], int(entries.get("offset", 0)), int(entries["length"])
            if location not in data:
                continue
            place = (location, offset, length)
            if place not in starts:
                starts[place] = append(data[location], offset, length, os.path.join(folder, DATA))
                copied += length
            refer(tensor, DATA, starts[place], length)
    return proto.SerializeToString(), copied


def append(data: files.File, offset: int, nbytes: int, path: str) -> int:
    """Copy bytes of an open file to the end of another one, which is made if there is none; where they begin there.

    Raises:
        OSError: There is no room, or the open file ends before.
    """
    with files.open_to_write(path, create=True) as target:
        start = -(-os.fstat(target.fileno()).st_size // _ALIGNMENT) * _ALIGNMENT
        done = files.copy_range(data, offset, nbytes, target, start)
    if done < nbytes:
        raise OSError(f"what is to be copied to {path} ends at byte {offset + done}, {nbytes - done} more expected")
    return start


def open_again(source: FileSource) -> files.File:
    """Open the file of a source by its path; SourceChangedError if it has changed, or another file has its path by now."""
    file = files.open_to_read(source.name, follow_link=True)
    if Identity.of(os.fstat(file.fileno())) != Identity.of(source.status):
        file.close()
        raise SourceChangedError(f"{source.name}: changed while it was being loaded")
    return file
