"""Which files a model consists of."""

import os
from pathlib import Path

import onnx
import pytest
from onnx.parser import parse_model

from conformance.drawing.weight import Weight
from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.files import data_files
from tests.support import linear, save

MODEL = linear(Weight(k=128, n=256))


def test_a_model_with_its_weights_inside_has_none(tmp_path: Path) -> None:
    assert data_files(str(save(MODEL, tmp_path, "file"))) == []


def test_each_file_once_and_links_followed(tmp_path: Path) -> None:
    model = onnx.load(str(save(MODEL, tmp_path, "external")), load_external_data=False)
    (data,) = (path for path in tmp_path.iterdir() if path.suffix != ".onnx")
    (tmp_path / "link").symlink_to(data)
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"]
    assert len(entries) > 1
    entries[0].value = "link"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert data_files(str(tmp_path / "model.onnx")) == [os.path.realpath(data)]


def written(folder: Path, graph: str) -> str:
    path = folder / "m.onnx"
    path.write_bytes(parse_model(f'<ir_version: 10, opset_import: ["": 21]> {graph}').SerializeToString())
    return str(path)


def test_those_of_subgraphs_count(tmp_path: Path) -> None:
    outer, inner = (f'g () => () <float[1024] w = ["location": "{name}.data"]>' for name in ("outer", "inner"))
    path = written(tmp_path, f"{outer} {{ y = If (c) <then_branch = {inner} {{}}, else_branch = {inner} {{}}> }}")
    for name in ("inner.data", "outer.data"):
        (tmp_path / name).write_bytes(bytes(4096))
    assert sorted(map(os.path.basename, data_files(path))) == ["inner.data", "outer.data"]


@pytest.mark.parametrize(("key", "value"), [
    ("offset", "0"), ("location", "/etc/passwd"), ("location", "../other.data"), ("location", "missing.data"),
])  # fmt: skip
def test_what_cannot_be_opened(key: str, value: str, tmp_path: Path) -> None:
    path = written(tmp_path, f'g () => () <float[1024] w = ["{key}": "{value}"]> {{}}')
    with pytest.raises((ModelError, OSError)):
        data_files(path)


def test_a_model_in_ort_format_has_none(tmp_path: Path) -> None:
    (tmp_path / "m.ort").write_bytes(b"\x00\x00\x00\x00ORTM" + bytes(100))
    assert data_files(str(tmp_path / "m.ort")) == []
