"""Exported models: stock ONNX Runtime loads them, with nothing of ours, and computes what our session does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.big_models import write_pair
from conformance.drawing.weight import Weight
from conformance.patterns.catalogue import PATTERNS
from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.cli.demo_model import Decoder
from ort_qdq_plugin.errors import ModelError, QdqPluginError
from ort_qdq_plugin.load.export import export
from tests.support import CPU, linear, result, same, save, stock, unquantized

VARIANTS = (
    "uint4", "int4", "uint8", "uint2", "uint4-nmajor", "int4-nmajor", "uint4-fp16", "int8", "uint4-nozp", "uint8-nmajor",
)  # fmt: skip


def written(variant: str, folder: Path, storage: str = "external") -> Path:
    return write_pair(folder, variant, Decoder(1, 256, 512, 1024), storage=storage).qdq


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_different_models(variant: str, external: bool, tmp_path: Path) -> None:
    path, out = written(variant, tmp_path / "model"), tmp_path / "out.onnx"
    report = export(path, out, external_data=external)
    assert report.fused
    assert report.route == "export"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "out.onnx", "out.onnx.data"][: 2 + external]
    onnx.checker.check_model(str(out))
    kinds = {node.op_type for node in onnx.load(out).graph.node}
    assert "MatMulNBits" in kinds
    assert "DequantizeLinear" not in kinds
    assert same(path, out)


@pytest.mark.parametrize("storage", ["inline", "inline, explicit DEFAULT"])
def test_inline_weights(storage: str, tmp_path: Path) -> None:
    path = written("uint4-nmajor", tmp_path / "model", storage)
    for external in (False, True):
        export(path, tmp_path / "out.onnx", external_data=external, force=True)
        assert same(path, tmp_path / "out.onnx")


def test_patterns_of_all_kinds(tmp_path: Path) -> None:
    """Subgraphs, functions, tables, ties: whatever is fused can be exported."""
    exported = 0
    for number, pattern in enumerate(PATTERNS[::9]):
        path, out = tmp_path / f"{number}.onnx", tmp_path / f"{number}-out.onnx"
        path.write_bytes(pattern.build().SerializeToString())
        try:
            export(path, out)
        except QdqPluginError:
            continue
        onnx.load(out)
        stock(str(out))
        exported += 1
    assert exported > 10


def test_nothing_of_ours_is_needed(tmp_path: Path) -> None:
    path, out = written("uint4", tmp_path / "model"), tmp_path / "out.onnx"
    export(path, out)
    code = """
import sys
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(any(name.startswith("ort_qdq_plugin") for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code, str(out)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_each_weight_is_written_once(tmp_path: Path) -> None:
    path = written("uint4", tmp_path / "model")
    export(path, tmp_path / "out.onnx", external_data=True)
    entries = [
        tuple(entry.value for entry in tensor.external_data)
        for tensor in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    assert all(int(offset) % 4096 == 0 for _, offset, _ in entries)
    assert len(set(entries)) == len(entries)


def test_accuracy_level(tmp_path: Path) -> None:
    path, out = written("uint4", tmp_path / "model"), tmp_path / "out.onnx"
    export(path, out, options=Options(accuracy_level=0))
    nodes = onnx.load(out).graph.node
    assert {entry.i for node in nodes for entry in node.attribute if entry.name == "accuracy_level"} <= {0}


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    path, out = written("uint4", tmp_path / "model"), tmp_path / "out.onnx"
    out.write_text("mine")
    with pytest.raises(FileExistsError):
        export(path, out)
    assert out.read_text() == "mine"
    (tmp_path / "other.onnx.data").write_text("mine")
    with pytest.raises(FileExistsError):
        export(path, tmp_path / "other.onnx", external_data=True)
    export(path, out, force=True)
    assert same(path, out)


def test_over_itself(tmp_path: Path) -> None:
    path = written("uint4", tmp_path / "model")
    expected = result(create_session(path, providers=CPU))
    export(path, path, external_data=True, force=True)
    np.testing.assert_array_equal(result(stock(str(path))), expected)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ort_qdq_plugin.load import export as module

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = written("uint4", tmp_path / "model")
    monkeypatch.setattr(module, "_write_beside", full)
    with pytest.raises(OSError, match="space"):
        export(path, tmp_path / "out.onnx", external_data=True)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_nothing_to_fuse(tmp_path: Path) -> None:
    onnx.save(unquantized(), tmp_path / "m.onnx")
    with pytest.raises(QdqPluginError, match="quantized"):
        export(tmp_path / "m.onnx", tmp_path / "out.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x0a" * 50)
    with pytest.raises((ModelError, QdqPluginError)):
        export(tmp_path / "broken.onnx", tmp_path / "out.onnx")
    with pytest.raises(OSError, match="missing"):
        export(tmp_path / "missing.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_progress(tmp_path: Path) -> None:
    path = str(save(linear(Weight(k=512, n=512)), tmp_path, "file"))
    seen: list[tuple[int, int]] = []
    export(path, tmp_path / "out.onnx", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
