"""ExternalData: where ONNX Runtime finds the bytes of each tensor."""

import mmap
from pathlib import Path

import numpy as np
from onnx import TensorProto

from ort_qdq_plugin.memory.external_data import ExternalData
from ort_qdq_plugin.model.sources import FileSource, MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor

COUNT = 2048


def test_places_borrowed(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(bytes(100) + np.full(COUNT, 3, np.float32).tobytes())
    source = FileSource(str(tmp_path / "w.data"))
    in_file = StoredTensor("w", TensorProto.FLOAT, (COUNT,), source, 100, COUNT * 4)
    small = StoredTensor("s", TensorProto.FLOAT, (2,), MemorySource(b"12345678"), 0, 8)
    in_memory = StoredTensor("m", TensorProto.FLOAT, (COUNT,), MemorySource(bytes(COUNT * 4)), 0, COUNT * 4)
    places = ExternalData(False, [])
    protos = [TensorProto(name="w", data_type=1) for _ in range(4)]
    for proto, stored in zip(protos, (in_file, in_file, small, in_memory), strict=True):
        places.put(proto, stored)
    first, again, inline, memory = protos
    assert [entry.value for entry in first.external_data] == [entry.value for entry in again.external_data]
    assert inline.raw_data == b"12345678"
    assert inline.data_location == TensorProto.DEFAULT
    assert set(places.buffers) == {first.external_data[0].value, memory.external_data[0].value}
    assert len(places.mappings) == 1
    assert isinstance(places.mappings[0], mmap.mmap)
