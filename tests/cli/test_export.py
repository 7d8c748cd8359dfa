"""``ort-qdq export``."""

import errno
import json
import os
from io import BufferedWriter
from pathlib import Path

import onnx
import pytest

from ort_qdq_plugin.load import export
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
    assert "a folder without a genai_config.json" in here.refused("export", folder, out)
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


@pytest.mark.parametrize("force", [False, True])
def test_where_no_file_can_be_written(force: bool, tmp_path: Path, here: Here) -> None:
    (tmp_path / "m.onnx").write_bytes(mixed())
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.onnx.data").mkdir()
    faults = {"folder": "folder: a folder: name a file", "m.onnx/out.onnx": "m.onnx: not a folder"}
    if hasattr(os, "mkfifo"):
        # Devices have the same fault: root could replace them.
        os.mkfifo(tmp_path / "fifo")
        faults["fifo"] = "fifo: not a regular file"
    before = sorted(tmp_path.iterdir())
    for name, fault in faults.items():
        assert fault in here.refused("export", tmp_path / "m.onnx", tmp_path / name, *["--force"] * force)
    assert "data.onnx.data: a folder" in here.refused(
        "export", tmp_path / "m.onnx", tmp_path / "data.onnx", "--external-data", *["--force"] * force
    )
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("flags", [[], ["--external-data"]])
def test_a_full_disk(flags: list[str], tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the new file, and nothing is left of it."""
    (tmp_path / "m.onnx").write_bytes(mixed())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export, "BufferedWriter", type("Full", (BufferedWriter,), {"write": full}))
    assert "out.onnx: No space left on device" in here.refused("export", tmp_path / "m.onnx", tmp_path / "out.onnx", *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"graph_optimization_level": "ORT_ENABLE_BASIC"}, "graph_optimization_level is ORT_ENABLE_BASIC"),
        ({"session.disable_quant_qdq": "1"}, "session.disable_quant_qdq is 1"),
        ({"provider_options": [{"QNN": {}}]}, "QNNExecutionProvider"),
    ],
)
def test_a_folder_in_which_nothing_is_fused_says_why(options: object, why: str, tmp_path: Path, here: Here) -> None:
    """The reason is in its configuration; the model alone would be fused."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(mixed())
    config = {"model": {"decoder": {"filename": "m.onnx", "session_options": options}}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert why in here.refused("export", folder, tmp_path / "out")
    assert why in here.said("inspect", folder)


@pytest.mark.parametrize("what", ["missing", "garbage", "directory", "level", "no folder"])
def test_what_cannot_be_exported(what: str, tmp_path: Path, here: Here) -> None:
    model, out = tmp_path / "m.onnx", tmp_path / ("nowhere/out.onnx" if what == "no folder" else "out.onnx")
    if what == "directory":
        model.mkdir()
    elif what != "missing":
        model.write_bytes(b"\xff" * 1000 if what == "garbage" else mixed())
    assert ".tmp" not in here.refused("export", model, out, *(["--accuracy-level", "9"] if what == "level" else []))
    assert sorted(path.name for path in tmp_path.iterdir()) == ([] if what == "missing" else ["m.onnx"])
