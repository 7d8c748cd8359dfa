"""``ort-qdq export``."""

from pathlib import Path

import pytest

from tests.cli.support import here
from tests.support import mixed, stock


def test_a_model_that_stock_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(mixed())
    done = here(capsys, "export", tmp_path / "m.onnx", tmp_path / "out.onnx", "--external-data")
    assert (done.code, done.err) == (0, "")
    assert f"{tmp_path / 'out.onnx'} and {tmp_path / 'out.onnx.data'}: 1 fused, 1 left" in done.out
    stock(str(tmp_path / "out.onnx"))
    done = here(capsys, "export", tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert (done.code, done.out) == (2, "")
    assert "out.onnx is there already: say --force" in done.err
    assert here(capsys, "export", tmp_path / "m.onnx", tmp_path / "out.onnx", "--force").code == 0


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    done = here(capsys, "export", folder, out)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert "genai_config.json: No such file or directory" in done.err
    (folder / "genai_config.json").write_text('{"model": {"decoder": {"filename": "m.onnx"}}}')
    (folder / "m.onnx").write_bytes(mixed())
    done = here(capsys, "export", folder, out)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == f"{out / 'm.onnx'}: 1 fused, 1 left"
    assert done.out.splitlines()[1].startswith(f"{out}: ")
    stock(str(out / "m.onnx"))
    assert f"{tmp_path / 'nowhere'}: No such file" in here(capsys, "export", folder, tmp_path / "nowhere" / "out").err
    assert "is there already: say --force" in here(capsys, "export", folder, out).err
    assert here(capsys, "export", folder, out, "--force").code == 0
    (out / "genai_config.json").unlink()
    assert "is there already: name another folder" in here(capsys, "export", folder, out, "--force").err


@pytest.mark.parametrize("what", ["missing", "garbage", "directory", "level", "no folder"])
def test_what_cannot_be_exported(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "m.onnx", tmp_path / ("nowhere/out.onnx" if what == "no folder" else "out.onnx")
    if what == "directory":
        model.mkdir()
    elif what != "missing":
        model.write_bytes(b"\xff" * 1000 if what == "garbage" else mixed())
    done = here(capsys, "export", model, out, *(["--accuracy-level", "9"] if what == "level" else []))
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert ".tmp" not in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ([] if what == "missing" else ["m.onnx"])
