"""What the wrong uses of models and commands are tried on: a good model, and files and folders that are none."""

import json
import os
from pathlib import Path

import onnx

from conformance.drawing.draft import Draft, stack

__all__ = ["NEEDED", "make_scene"]

NEEDED = 41984
"""Bytes of the external data of the model: a weight of 256 x 256 in 4 bits, its scales and zero points."""

_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"


def make_scene(folder: Path) -> None:
    """Write all of it into a folder."""
    model = stack(1, 256)
    for name in (".", "short", "missing", "genai"):
        (folder / name).mkdir(exist_ok=True)
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, folder / name / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    with (folder / "short" / "model.data").open("r+b") as data:
        data.truncate(1000)
    (folder / "missing" / "model.data").unlink()
    _write_config(folder / "genai", filename="model.onnx")
    for name in ("off", "names-none", "basic"):
        (folder / name).mkdir()
    _write_config(folder / "off", filename="../model.onnx")
    _write_config(folder / "names-none")
    _write_config(folder / "basic", filename="model.onnx", session_options={"graph_optimization_level": "ORT_ENABLE_BASIC"})
    onnx.save(model, folder / "basic" / "model.onnx")
    onnx.save(_unquantized(), folder / "float.onnx")
    (folder / "cut.onnx").write_bytes(model.SerializeToString()[:20_000])
    (folder / "pointer.onnx").write_text(_POINTER)
    (folder / "page.onnx").write_text("<!DOCTYPE html>\n<html><title>404</title></html>\n")
    (folder / "archive.onnx").write_bytes(b"PK\x03\x04" + bytes(100))
    (folder / "weights.onnx").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "notes.onnx").write_text("no model\n" * 9)
    for name in ("empty.onnx", "file", "program.py"):
        (folder / name).touch()
    for name in ("folder", "cache"):
        (folder / name).mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "fifo")


def _write_config(folder: Path, **decoder: object) -> None:
    (folder / "genai_config.json").write_text(json.dumps({"model": {"decoder": decoder}}))


def _unquantized() -> onnx.ModelProto:
    draft = Draft("float")
    draft.output(draft.node("MatMul", [draft.input("x", ["m", 64]), draft.floats("w", [64, 64])], "y"), ["m", 64])
    return draft.model()
