"""Folders of models, exported: what is in them then, and what is never touched."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin import Options, StockReason, genai
from ort_qdq_plugin.errors import ModelError, QdqPluginError
from ort_qdq_plugin.genai.config import CONFIG_NAME
from ort_qdq_plugin.genai.export_folder import export
from ort_qdq_plugin.ort.keys import ACCURACY_KEY
from tests.support import external_tensor, floating, linear, same, save

DECODER, ENCODER = "decoder.onnx", "sub/encoder.onnx"


def config(**decoder: Any) -> str:
    return json.dumps({"model": {"decoder": {"filename": DECODER, **decoder}, "encoder": {"filename": ENCODER}}})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A decoder that can be fused, an encoder that cannot, a model that nobody names, and other files."""
    made = tmp_path / "model"
    (made / "sub").mkdir(parents=True)
    save(linear(Weight(k=128, n=256)), made, "external", "decoder")
    save(floating(), made / "sub", "external", "encoder")
    save(linear(Weight(k=64, n=64, n_major=True)), made, "external", "other")
    (made / "tokenizer.json").write_text("tokens")
    (made / CONFIG_NAME).write_text(config())
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def data_of(model: Path) -> str:
    return next(model.parent.glob(f"{model.stem}*data")).name


def levels(model: Path) -> set[int]:
    nodes = onnx.load(model).graph.node
    return {attribute.i for node in nodes for attribute in node.attribute if attribute.name == "accuracy_level"}


def test_everything_comes_along_and_what_was_fused_is_new(folder: Path, tmp_path: Path) -> None:
    before, seen = content(folder), list[tuple[int, int]]()
    out = tmp_path / "out"
    reports = export(folder, out, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert [(name, report.route) for name, report in reports.items()] == [(DECODER, "export"), (ENCODER, "stock")]
    assert reports[ENCODER].stock_reason is StockReason.NOT_QUANTIZED
    changed = {DECODER, f"{DECODER}.data", data_of(folder / DECODER)}
    kept = {name: data for name, data in before.items() if name not in changed}
    assert {name: data for name, data in content(out).items() if name not in changed} == kept
    assert content(out).keys() - kept.keys() == {DECODER, f"{DECODER}.data"}
    assert same(folder / DECODER, out / DECODER)
    assert content(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
    assert genai.export is export


def test_accuracy_level_of_the_configuration_and_of_the_options(folder: Path, tmp_path: Path) -> None:
    (folder / CONFIG_NAME).write_text(config(session_options={ACCURACY_KEY: "1"}))
    export(folder, tmp_path / "config")
    export(folder, tmp_path / "options", options=Options(accuracy_level=2))
    assert (levels(tmp_path / "config" / DECODER), levels(tmp_path / "options" / DECODER)) == ({1}, {2})
    # The new configuration says it as well, for what ONNX Runtime fuses itself.
    said = [json.loads((tmp_path / name / CONFIG_NAME).read_text()) for name in ("config", "options")]
    assert [made["model"]["decoder"]["session_options"][ACCURACY_KEY] for made in said] == ["1", "2"]
    assert (tmp_path / "config" / CONFIG_NAME).read_text() == (folder / CONFIG_NAME).read_text()


@pytest.mark.parametrize(("key", "value", "reason"), [
    ("graph_optimization_level", "ORT_DISABLE_ALL", StockReason.FUSION_DISABLED),
    ("provider_options", [{"QNN": {}}], StockReason.PROVIDER),
])  # fmt: skip
def test_what_may_not_be_fused_is_copied(key: str, value: Any, reason: StockReason, folder: Path, tmp_path: Path) -> None:
    stage = {"stage": {"filename": "other.onnx", "session_options": {}}}
    (folder / CONFIG_NAME).write_text(config(session_options={key: value}, pipeline=[stage]))
    reports = export(folder, tmp_path / "out")
    assert [report.route for report in reports.values()] == ["stock", "export", "stock"]
    assert reports[DECODER].stock_reason is reason
    assert (tmp_path / "out" / DECODER).read_bytes() == (folder / DECODER).read_bytes()


def test_data_that_others_refer_to_too_is_kept(folder: Path, tmp_path: Path) -> None:
    os.rename(folder / data_of(folder / DECODER), folder / f"{DECODER}.data")
    model = onnx.load(folder / DECODER, load_external_data=False)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.external_data]:
        external_tensor(model, tensor.name, location=f"{DECODER}.data")
    for name in (DECODER, "second.onnx"):
        (folder / name).write_bytes(model.SerializeToString())
    out = tmp_path / "out"
    export(folder, out)
    assert same(folder / DECODER, out / DECODER)
    assert same(folder / DECODER, out / "second.onnx")
    assert (out / f"{DECODER}.data").read_bytes() == (folder / f"{DECODER}.data").read_bytes()
    (folder / "second.onnx").write_bytes(b"\xff" * 100)
    export(folder, out, force=True)
    assert f"{DECODER}.fused.data" in content(out)
    (folder / "second.onnx").unlink()
    export(folder, out, force=True)
    assert f"{DECODER}.fused.data" not in content(out)
    assert same(folder / DECODER, out / DECODER)


def test_a_folder_of_links_as_in_hugging_faces_cache(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", CONFIG_NAME):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    (folder / "again").symlink_to(folder)
    export(folder, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert "again" not in {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "tokens"


def test_what_is_there_is_kept(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(folder, out)
    with pytest.raises(FileExistsError):
        export(folder, out)
    (out / "tokenizer.json").write_text("older")
    export(folder, out, force=True)
    assert (out / "tokenizer.json").read_text() == "tokens"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    link = tmp_path / "link"
    link.symlink_to(out)
    for target in (mine, mine / "letter.txt", link):
        with pytest.raises(FileExistsError):
            export(folder, target, force=True)
    for target in (folder, folder / "sub" / "new", tmp_path):
        with pytest.raises(QdqPluginError, match="inside"):
            export(folder, target, force=True)
    assert (mine / "letter.txt").read_text() == "dear"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine", "model", "out"]


SPOILT: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "broken": (lambda folder: (folder / DECODER).write_bytes(b"\xff" * 1000), ModelError),
    "missing": (lambda folder: (folder / DECODER).unlink(), FileNotFoundError),
    "nothing to fuse": (lambda folder: save(floating(), folder, "file", "decoder"), QdqPluginError),
    "no configuration": (lambda folder: (folder / CONFIG_NAME).unlink(), FileNotFoundError),
    "a broken one": (lambda folder: (folder / CONFIG_NAME).write_text("["), ModelError),
    "a strange entry": (
        lambda folder: (folder / CONFIG_NAME).write_text(config(session_options={ACCURACY_KEY: "best"})), ModelError,
    ),
    "a pipe": (lambda folder: os.mkfifo(folder / "pipe"), OSError),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_what_cannot_be_exported_leaves_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    spoil, error = SPOILT[name]
    spoil(folder)
    with pytest.raises(error):
        export(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_folder_that_cannot_be_exchanged_stays(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    export(folder, out)
    rename = os.rename

    def refuse(old: str, new: str) -> None:
        if old.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(os, "rename", refuse)
    before = content(out)
    with pytest.raises(OSError, match="Input"):
        export(folder, out, force=True)
    assert content(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
