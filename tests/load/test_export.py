"""Exported models: stock ONNX Runtime loads them, with nothing of ours, and computes what our session does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.big_models import write_pair
from conformance.drawing.draft import Draft
from conformance.patterns.catalogue import PATTERNS
from ort_qdq_plugin import Options, create_session
from ort_qdq_plugin.cli.demo_model import Decoder
from ort_qdq_plugin.errors import ModelError, QdqPluginError
from ort_qdq_plugin.load import export as module
from ort_qdq_plugin.load.export import export
from tests.support import CPU, external_tensor, refuse, result, same, save, stock, tensor_of, unquantized

VARIANTS = (
    "uint4", "int4", "uint8", "uint2", "uint4-nmajor", "int4-nmajor", "uint4-fp16", "int8", "uint4-nozp", "uint8-nmajor",
)  # fmt: skip


def written(variant: str, folder: Path, storage: str = "external") -> Path:
    return write_pair(folder, variant, Decoder(1, 256, 512, 1024), storage=storage).qdq


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A model in a folder of its own."""
    return written("uint4", tmp_path / "model")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.onnx"


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_different_models(variant: str, external: bool, tmp_path: Path, out: Path) -> None:
    path = written(variant, tmp_path / "model")
    report = export(path, out, external_data=external)
    assert report.fused
    assert report.route == "export"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "out.onnx", "out.onnx.data"][: 2 + external]
    onnx.checker.check_model(str(out))
    kinds = {node.op_type for node in onnx.load(out).graph.node}
    assert ("MatMulNBits" in kinds, "DequantizeLinear" in kinds) == (True, False)
    assert same(path, out)


@pytest.mark.parametrize("storage", ["inline", "inline, explicit DEFAULT"])
def test_inline_weights(storage: str, tmp_path: Path, out: Path) -> None:
    path = written("uint4-nmajor", tmp_path / "model", storage)
    for external in (False, True):
        export(path, out, external_data=external, force=True)
        assert same(path, out)


def test_patterns_of_all_kinds(tmp_path: Path, out: Path) -> None:
    """Subgraphs, functions, tables, ties: whatever is fused can be exported."""
    exported = 0
    for pattern in PATTERNS[::9]:
        if pattern.precision == "bfloat16":  # for whose other nodes the CPU has no kernels
            continue
        (tmp_path / "model.onnx").write_bytes(pattern.build().SerializeToString())
        try:
            export(tmp_path / "model.onnx", out, force=True)
        except QdqPluginError:
            continue
        onnx.load(out)
        stock(str(out))
        exported += 1
    assert exported > 10


def test_nothing_of_ours_is_needed(path: Path, out: Path) -> None:
    export(path, out)
    code = """
import sys
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(any(name.startswith("ort_qdq_plugin") for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code, str(out)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_each_weight_is_written_once(path: Path, out: Path) -> None:
    export(path, out, external_data=True)
    tensors = onnx.load(out, load_external_data=False).graph.initializer
    entries = [tuple(entry.value for entry in tensor.external_data) for tensor in tensors if tensor.external_data]
    assert all(int(offset) % 4096 == 0 for _, offset, _ in entries)
    assert len(set(entries)) == len(entries) > 0


def test_accuracy_level(path: Path, out: Path) -> None:
    export(path, out, options=Options(accuracy_level=0))
    nodes = onnx.load(out).graph.node
    assert {entry.i for node in nodes for entry in node.attribute if entry.name == "accuracy_level"} <= {0}


def test_what_is_there_is_kept(path: Path, out: Path) -> None:
    data = out.with_name("other.onnx.data")
    for taken in (out, data):
        taken.write_text("mine")
    for refused in (out, out.with_name("other.onnx")):
        with pytest.raises(FileExistsError):
            export(path, refused, external_data=refused is not out)
    assert (out.read_text(), data.read_text()) == ("mine", "mine")
    export(path, out, force=True)
    assert same(path, out)


def test_over_itself(path: Path) -> None:
    expected = result(create_session(path, providers=CPU))
    export(path, path, external_data=True, force=True)
    np.testing.assert_array_equal(result(stock(str(path))), expected)


def test_a_full_disk_leaves_nothing(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, module, "_write_beside", 28)
    with pytest.raises(OSError, match="space"):
        export(path, out, external_data=True)
    assert [file.name for file in out.parent.iterdir()] == ["model"]


def test_nothing_to_fuse(tmp_path: Path, out: Path) -> None:
    onnx.save(unquantized(), tmp_path / "m.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x0a" * 50)
    for name, error, said in (
        ("m", QdqPluginError, "quantized"),
        ("broken", (ModelError, QdqPluginError), "broken"),
        ("missing", OSError, "missing"),
    ):
        with pytest.raises(error, match=said):
            export(tmp_path / f"{name}.onnx", out)
    assert not out.exists()


@pytest.mark.parametrize("external_data", [False, True])
def test_progress(tmp_path: Path, out: Path, external_data: bool) -> None:
    """It ends with all bytes that were written: in a file of their own once, where two initializers are the same bytes."""
    seen: list[tuple[int, int]] = []
    draft = Draft()
    for name in ("w", "v"):
        dequantized = draft.dequantize(name, [256, 256], axis=1, zero="none")
        if name == "w":
            transposed = draft.node("Transpose", [dequantized], "t", perm=[1, 0])
            draft.output(draft.node("MatMul", [draft.input("x", ["m", 256]), transposed], "y"), ["m", 256])
        else:
            draft.output(dequantized, [256, 256])
    path = str(save(draft.model(), tmp_path, "external"))
    proto = onnx.load(path, load_external_data=False)
    for first, second in (("w", "v"), ("w_s", "v_s")):
        entries = tensor_of(proto, first).external_data
        external_tensor(proto, second, **{entry.key: entry.value for entry in entries})
    onnx.save(proto, path)
    export(path, out, external_data=external_data, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] >= max(done for done, _ in seen)
    written = [tensor.external_data for tensor in onnx.load(out, load_external_data=False).graph.initializer]
    ranges = [(entries[1].value, int(entries[2].value)) for entries in written if entries]
    assert len(ranges) == (len(set(ranges)) + 2 if external_data else 0)
    if external_data:
        assert seen[-1][0] == sum(nbytes for _, nbytes in set(ranges))
    assert same(Path(path), out)
