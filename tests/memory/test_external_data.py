"""ExternalData: where ONNX Runtime finds the bytes of each tensor."""

import mmap
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from ort_qdq_plugin.errors import LeaveToStock
from ort_qdq_plugin.memory.external_data import ExternalData
from ort_qdq_plugin.model.sources import FileSource, MemorySource
from ort_qdq_plugin.model.tensors import StoredTensor
from ort_qdq_plugin.report import StockReason
from ort_qdq_plugin.system.platform import files

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


def test_files_on_two_drives_have_no_folder_in_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these folders stands for a drive."""
    monkeypatch.setattr(files, "root_of", lambda path: str(tmp_path / Path(path).relative_to(tmp_path).parts[0]))
    sources = []
    for name in ("c", "d"):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "in" / "w.data").write_bytes(bytes(COUNT * 4))
        sources.append(FileSource(str(tmp_path / name / "in" / "w.data")))
    places, tensor = ExternalData(True, []), TensorProto(name="w", data_type=1)
    places.put(tensor, StoredTensor("w", TensorProto.FLOAT, (COUNT,), sources[0], 0, COUNT * 4))
    assert (places.root, tensor.external_data[0].value) == (str(tmp_path / "c"), str(Path("in", "w.data")))
    with pytest.raises(LeaveToStock, match="several drives") as caught:
        places.put(tensor, StoredTensor("w", TensorProto.FLOAT, (COUNT,), sources[1], 0, COUNT * 4))
    assert caught.value.reason is StockReason.DRIVES
