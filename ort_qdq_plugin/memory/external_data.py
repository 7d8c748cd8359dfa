"""Where the tensors of the rewritten model find their bytes."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence

import numpy as np

from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.memory.buffer import PackedBuffer
from ort_qdq_plugin.model.messages import ModelProto, TensorProto, external_data, external_tensors, refer
from ort_qdq_plugin.model.sources import ByteSource, MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.model.wire import LARGE_TENSOR_BYTES
from ort_qdq_plugin.report import StockReason
from ort_qdq_plugin.system.platform import files

__all__ = ["ExternalData", "by_paths"]


class ExternalData:
    """Where external tensors of the rewritten model find their bytes.

    Raises:
        LeaveToStock: ONNX Runtime is to open files by path that have no folder in common. So does `put`.
    """

    def __init__(self, through_paths: bool, packed: Sequence[PackedBuffer]) -> None:
        # By location, if ONNX Runtime borrows them. If it opens files by path, locations are paths below `root`.
        self.buffers: dict[str, mmap.mmap | bytes] = {}
        self.mappings: list[mmap.mmap] = []  # those that are of files, whose pages may be dropped at any moment
        self._root = _Root()
        self._through_paths = through_paths
        self._locations: dict[ByteSource, str] = {}
        self._packed = packed
        self._packed_at = [
            self._root.location_of(buffer.path) if buffer.path is not None
            else "" if through_paths
            else self._new_location(f"packed-{at}.bin", buffer.mapping)
            for at, buffer in enumerate(packed)
        ]  # fmt: skip
        self.mappings += [buffer.mapping for buffer in packed if buffer.in_file]

    @property
    def root(self) -> str:
        """The folder that all files are below which ONNX Runtime opens by path."""
        return self._root.path

    @property
    def locations(self) -> dict[str, str]:
        """The name of each source that is used in place -> its location in the model."""
        return {source.name: location for source, location in self._locations.items()}

    def put(self, tensor: TensorProto, stored: StoredTensor) -> None:
        """Make `tensor` refer to `stored` where it is, or hold its bytes where nothing can refer to them."""
        in_memory = isinstance(stored.source, MemorySource)
        if (in_memory and (self._through_paths or stored.nbytes < LARGE_TENSOR_BYTES)) or not stored.nbytes:
            _put_inside(tensor, stored.read())
            return
        if stored.source not in self._locations:
            self._locations[stored.source] = (
                self._root.location_of(stored.source.name) if self._through_paths else self._borrow(stored.source)
            )
        refer(tensor, self._locations[stored.source], stored.offset, stored.nbytes)

    def put_packed(self, tensor: TensorProto, segment: int, offset: int, nbytes: int) -> None:
        """Make `tensor` refer to byte `offset` of a packed buffer, or hold its bytes where ONNX Runtime cannot open it."""
        if self._packed_at[segment]:
            refer(tensor, self._packed_at[segment], offset, nbytes)
        else:
            _put_inside(tensor, self._packed[segment].array[offset : offset + nbytes])

    def _borrow(self, source: ByteSource) -> str:
        buffer = source.buffer()
        if isinstance(buffer, mmap.mmap):
            self.mappings.append(buffer)
        return self._new_location(f"data-{len(self._locations)}", buffer)

    def _new_location(self, location: str, buffer: mmap.mmap | bytes) -> str:
        self.buffers[location] = buffer
        return location


class _Root:
    """The topmost folder, below which ONNX Runtime finds files by path. Some systems have one for each drive."""

    def __init__(self) -> None:
        self.path = os.sep
        self._is_known = False

    def location_of(self, path: str) -> str:
        """The path of a file below it. Raises LeaveToStock if the file is on another drive than those before."""
        real = os.path.realpath(path)
        root = files.root_of(real)
        if self._is_known and os.path.normcase(root) != os.path.normcase(self.path):
            raise LeaveToStock(StockReason.DRIVES, f"{self.path} and {root}")
        self.path, self._is_known = root, True
        return os.path.relpath(real, root)


def _put_inside(tensor: TensorProto, data: np.ndarray) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = data.tobytes()


def by_paths(model: bytes, paths: Mapping[str, str]) -> tuple[bytes, str]:
    """A serialized model, its external tensors in files at these paths, by location, which ONNX Runtime opens itself; and
    the folder that it looks for them below.

    Raises:
        LeaveToStock: They have no folder in common.
    """
    root = _Root()
    proto, below = ModelProto.FromString(model), {location: root.location_of(path) for location, path in paths.items()}
    for tensor in external_tensors(proto.graph):
        entries = external_data(tensor)
        refer(tensor, below[entries["location"]], int(entries.get("offset", 0)), int(entries["length"]))
    return bytes(proto.SerializeToString()), root.path
