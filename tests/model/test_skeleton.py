"""What is opened: the model without its large tensors, the files that it needs, and what is no ONNX model."""

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import GraphProto, ModelProto

from conformance.drawing.weight import Weight
from ort_qdq_plugin.errors import SourceChangedError
from ort_qdq_plugin.model.skeleton import open_skeleton
from ort_qdq_plugin.model.sources import FileSource, MemorySource
from tests.support import Form, descriptors, linear, opened, refusing, save, settled_descriptors

MODEL = linear(Weight())  # its weight has 4096 bytes, its scales 1024
WEIGHT_BYTES = 4096
GRAPH = ModelProto(graph=GraphProto(name="g")).SerializeToString()


@pytest.mark.parametrize("form", ["bytes", "file"])
def test_a_large_tensor_is_a_reference_to_where_it_is(form: Form, tmp_path: Path) -> None:
    given = save(MODEL, tmp_path, form)
    skeleton = opened(given)
    assert type(skeleton.source) is (MemorySource if isinstance(given, bytes) else FileSource)
    parsed = {tensor.name: tensor for tensor in ModelProto.FromString(skeleton.data).graph.initializer}
    whole = {tensor.name: tensor for tensor in MODEL.graph.initializer}
    entries = {entry.key: entry.value for entry in parsed["w"].external_data}
    assert entries.pop("location") == skeleton.inline_location
    found = np.empty(int(entries["length"]), np.uint8)
    skeleton.source.read_into(int(entries["offset"]), found.data)
    assert found.tobytes() == whole["w"].raw_data
    assert parsed["w_s"] == whole["w_s"]
    assert len(skeleton.data) < MODEL.ByteSize() - WEIGHT_BYTES + 200


def test_nobody_can_guess_how_a_model_refers_to_itself() -> None:
    given = MODEL.SerializeToString()
    assert opened(given).inline_location != opened(given).inline_location


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("data", [b"", b"\x18\0\0\0ORTM", b"\x18\0\0\0ORTM and more"])
def test_an_empty_model_and_one_in_ort_format_are_none(data: bytes, in_file: bool, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with refusing(None if data else "empty"):
        assert open_skeleton(str(tmp_path / "model.onnx") if in_file else data, None) is None


@pytest.mark.parametrize(("model", "is_one"), [
    (ModelProto(ir_version=1), True), (ModelProto(ir_version=300), True), (ModelProto(producer_name="xxxORTM"), True),
    (ModelProto(producer_name="xxORTM"), False),  # where the identifier of ORT's format would be
])  # fmt: skip
def test_models_of_a_few_bytes_are_models(model: ModelProto, is_one: bool) -> None:
    data = model.SerializeToString() + GRAPH
    assert (data[4:8] == b"ORTM") != is_one
    skeleton = open_skeleton(data, None)
    assert (None if skeleton is None else skeleton.data) == (data if is_one else None)


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_skeleton(str(tmp_path / "gone.onnx"), None)
    (tmp_path / "genai").mkdir()
    with refusing("a folder, not an .onnx file: name one in it"):
        open_skeleton(str(tmp_path / "genai"), None)
    (tmp_path / "genai" / "genai_config.json").touch()
    with refusing("a folder of onnxruntime-genai, .* ort_qdq_plugin.genai"):
        open_skeleton(str(tmp_path / "genai"), None)
    with refusing("not an ONNX model, or a damaged one: no whole number at byte 0"):
        open_skeleton(b"\xff" * 20, None)
    with refusing("it has no graph"):
        open_skeleton(ModelProto(ir_version=10).SerializeToString(), None)


@pytest.mark.parametrize("as_path", [False, True])
@pytest.mark.parametrize("folder", [None, "", "other"])
def test_where_external_data_lies(as_path: bool, folder: str | None, tmp_path: Path) -> None:
    for name in ("beside", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.data").write_bytes(name.encode())
    path = tmp_path / "beside" / "model.onnx"
    path.write_bytes(MODEL.SerializeToString())
    skeleton = opened(str(path) if as_path else path.read_bytes(), folder and str(tmp_path / folder))
    found = folder or ("beside" if as_path else "")
    with refusing(None if found else "without a folder"):
        assert skeleton.files.open("w.data").name == str(tmp_path / found / "w.data")


@pytest.mark.parametrize("op_type", ["DequantizeLinear", "MatMul", "MatMulNBits", "Gather"])
def test_what_is_mentioned(op_type: str) -> None:
    assert opened(MODEL.SerializeToString()).mentions(op_type) == (op_type in ("DequantizeLinear", "MatMul"))


def test_files_count_once_tensors_were_found_in_them(tmp_path: Path) -> None:
    path, data = str(save(MODEL, tmp_path, "external")), str(tmp_path / "model.data")
    before = settled_descriptors()
    skeleton = opened(path)
    own = os.path.getsize(path)
    assert ([source.name for source in skeleton.file_sources], skeleton.stored_bytes) == ([path], own)
    skeleton.files.open("model.data")
    assert [source.name for source in skeleton.file_sources] == [path, data]
    assert skeleton.stored_bytes == own + os.path.getsize(data)
    assert descriptors() == before + 2
    skeleton.close()
    assert descriptors() == before


def test_bytes_are_no_file() -> None:
    skeleton = opened(MODEL.SerializeToString())
    assert skeleton.file_sources == ()
    assert skeleton.stored_bytes == MODEL.ByteSize()
    skeleton.check_unchanged()


@pytest.mark.parametrize("changed", ["model.onnx", "model.data"])
def test_a_change_of_any_file_is_noticed(changed: str, tmp_path: Path) -> None:
    path = save(MODEL, tmp_path, "external")
    skeleton = opened(path)
    skeleton.files.open("model.data")
    skeleton.check_unchanged()
    os.utime(tmp_path / changed, ns=(1, 1))
    with pytest.raises(SourceChangedError, match=changed):
        skeleton.check_unchanged()
