"""What is no ONNX model: each frequent kind of file is named."""

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from conformance.drawing.weight import Weight
from ort_qdq_plugin.model.skeleton import open_skeleton
from tests.support import linear, refusing

MODEL = linear(Weight()).SerializeToString()


def zipped() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("archive/data.pkl", MODEL)
    return written.getvalue()


def array() -> bytes:
    written = io.BytesIO()
    np.save(written, np.zeros(9))
    return written.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
OTHERS = {
    "a Git LFS pointer: the file itself, of 12345 bytes, was not fetched, which `git lfs pull` does": POINTER.encode(),
    "a web page": b"\n <!-- saved -->\n<!DOCTYPE html>\n<html lang=en>",
    "a zip archive, as PyTorch": zipped(),
    "a Python pickle, as older PyTorch": pickle.dumps({"w": [1.0]}, 2),
    "a safetensors file": safetensors(),
    "a GGUF file": b"GGUF\3\0\0\0" + bytes(20),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(20),
    "a TensorFlow Lite model": b"\x1c\0\0\0TFL3" + bytes(20),
    "a NumPy array": array(),
    "compressed by gzip: unpack it": gzip.compress(MODEL),
    "an XML file": b'<?xml version="1.0"?>\n<net name="m"/>',
    r"a text that begins with '\{\"model\": 1\}'": b'{"model": 1}',
    "a text that begins with 'M\u00fcller": "Müller".encode()[:-1] + b"r" * 5000,
    "nothing but zeros": bytes(5000),
    "empty": b"",
}


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("what", OTHERS)
def test_other_formats_are_named(what: str, in_file: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(OTHERS[what])
    name = "m.onnx" if in_file else "<model bytes>"
    with refusing(f"{name}: not an ONNX model: it is {what}"):
        open_skeleton(str(path) if in_file else OTHERS[what], None)


@pytest.mark.parametrize("left", [100, len(MODEL) // 2, len(MODEL) - 1])
def test_a_model_that_is_cut_off_says_where_it_would_end(left: int) -> None:
    # The graph comes before the opsets, which are cut off first.
    end = len(MODEL) - sum(opset.ByteSize() + 2 for opset in onnx.ModelProto.FromString(MODEL).opset_import)
    with refusing(
        "damaged" if left >= end else f"not a whole ONNX model: its graph ends at byte {end}, but there are {left}"
    ):
        open_skeleton(MODEL[:left], None)


@pytest.mark.parametrize("at", [4, 60])
def test_a_model_that_is_damaged_inside_says_where(at: int) -> None:
    with refusing("not an ONNX model, or a damaged one: .* byte"):
        open_skeleton(MODEL[:at] + b"\xff" * 60 + MODEL[at + 60 :], None)


@pytest.mark.parametrize("name", ["m.onnx.data", "m.onnx_data", "m.data", "m.bin"])
def test_external_data_in_place_of_its_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MODEL)
    data = tmp_path / name
    data.write_bytes(np.random.default_rng(0).bytes(5000))
    with refusing(f"it is the external data of a model: name that, .*{tmp_path.name}.m.onnx$"):
        open_skeleton(str(data), None)
    (tmp_path / "m.onnx").unlink()
    with refusing("damaged"):
        open_skeleton(str(data), None)


def test_a_configuration_in_place_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text("{}")
    with refusing("it is the configuration of a model of onnxruntime-genai: name its folder"):
        open_skeleton(str(tmp_path / "genai_config.json"), None)


def test_a_path_in_place_of_the_bytes_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MODEL)
    with refusing("it is the path of a file, .*m.onnx: give it as a str"):
        open_skeleton(bytes(tmp_path / "m.onnx"), None)
