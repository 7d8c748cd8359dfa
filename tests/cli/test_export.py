"""``ort-qdq export``."""

from pathlib import Path

import onnx
import pytest

from tests.cli.support import Here
from tests.support import missing, mixed, stock


def test_a_model_that_stock_loads(tmp_path: Path, here: Here) -> None:
    (tmp_path / "m.onnx").write_bytes(mixed())
    out = tmp_path / "out.onnx"
    said = here.said("export", tmp_path / "m.onnx", out, "--external-data")
    assert f"{out} and {out}.data: 1 fused, 1 left" in said
    stock(str(out))
    assert "out.onnx is there already: say --force" in here.refused("export", tmp_path / "m.onnx", out)
    here.said("export", tmp_path / "m.onnx", out, "--force")


def test_weights_that_no_fused_operator_takes(tmp_path: Path, here: Here) -> None:
    (tmp_path / "m.onnx").write_bytes(mixed())
    dequantizing = []
    for number, flags in enumerate(([], ["--dequantize-once"])):
        out = tmp_path / f"{number}.onnx"
        here.said("export", tmp_path / "m.onnx", out, *flags)
        dequantizing.append([node.op_type for node in onnx.load(out).graph.node].count("DequantizeLinear"))
        stock(str(out))
    assert dequantizing == [1, 0]


def test_a_folder(tmp_path: Path, here: Here) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    assert "genai_config.json: No such file or directory" in here.refused("export", folder, out)
    (folder / "genai_config.json").write_text('{"model": {"decoder": {"filename": "m.onnx"}}}')
    (folder / "m.onnx").write_bytes(mixed())
    assert here.said("export", folder, out).startswith(f"{out / 'm.onnx'}: 1 fused, 1 left\n{out}: ")
    stock(str(out / "m.onnx"))
    assert f"{tmp_path / 'nowhere'}: {missing(tmp_path / 'nowhere')}" in here.refused(
        "export", folder, tmp_path / "nowhere" / "out"
    )
    assert "is there already: say --force" in here.refused("export", folder, out)
    here.said("export", folder, out, "--force")
    (out / "genai_config.json").unlink()
    assert "is there already: name another folder" in here.refused("export", folder, out, "--force")


@pytest.mark.parametrize("what", ["missing", "garbage", "directory", "level", "no folder"])
def test_what_cannot_be_exported(what: str, tmp_path: Path, here: Here) -> None:
    model, out = tmp_path / "m.onnx", tmp_path / ("nowhere/out.onnx" if what == "no folder" else "out.onnx")
    if what == "directory":
        model.mkdir()
    elif what != "missing":
        model.write_bytes(b"\xff" * 1000 if what == "garbage" else mixed())
    assert ".tmp" not in here.refused("export", model, out, *(["--accuracy-level", "9"] if what == "level" else []))
    assert sorted(path.name for path in tmp_path.iterdir()) == ([] if what == "missing" else ["m.onnx"])
