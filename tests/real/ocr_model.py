"""The text recognition model in the PyPI package rapidocr-onnxruntime: preparing it, reading text with it.

The package itself is not imported (it needs OpenCV): its model file is all that is used.
"""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from real_support import Array, package_folder

__all__ = ["LINEAR_LAYERS", "PHRASES", "drawn", "prepared", "read", "recognizer_path"]

HEIGHT = 48  # the model's input height
# K and N of the products with constant weights: two attention blocks, then the head over 6,625 characters.
LINEAR_LAYERS = ((120, 360), (120, 120), (120, 240), (240, 120)) * 2 + ((120, 6625),)
PHRASES = ("Hello world 2026", "ONNX Runtime", "quantized weights", "The quick brown fox", "3.14159 + 2.71828")


def recognizer_path() -> Path:
    """Where the installed package keeps the recognition model."""
    return package_folder("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_rec_infer.onnx"


def prepared(opset: int = 21) -> onnx.ModelProto:
    """The float model at a newer opset, its Constant nodes made the initializers that quantizers want."""
    import onnx_ir
    from onnx import version_converter
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    original = onnx.load(recognizer_path())
    model = onnx_ir.from_proto(version_converter.convert_version(original, opset))
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    lifted: onnx.ModelProto = onnx_ir.to_proto(model)
    lifted.ir_version = 10 if opset >= 21 else 8
    return lifted


def drawn(text: str) -> Array:
    """A picture of `text` as the model wants it: float [1, 3, 48, W], blue first, -1 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=36)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    image = Image.new("RGB", (right - left + 24, HEIGHT), "white")
    ImageDraw.Draw(image).text((12 - left, (HEIGHT - bottom - top) // 2), text, fill="black", font=font)
    pixels = np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1
    return np.ascontiguousarray(pixels[np.newaxis], np.float32)


def read(session: ort.InferenceSession) -> tuple[list[str], list[Array]]:
    """What a recognizer reads in the pictures of all phrases, and the probabilities it read that from."""
    outputs = [np.asarray(session.run(None, {"x": drawn(text)})[0]) for text in PHRASES]
    return [_decoded(output[0]).strip() for output in outputs], outputs


@cache
def _alphabet() -> tuple[str, ...]:
    """The characters by class: 0 is "nothing new", the last one the space."""
    model = onnx.load(recognizer_path())
    characters = next(entry.value for entry in model.metadata_props if entry.key == "character")
    return ("", *characters.splitlines(), " ")


def _decoded(probabilities: Array) -> str:
    """Connectionist temporal classification: the best class of each step, repetitions counted once."""
    best = probabilities.argmax(axis=1)
    kept = [index for place, index in enumerate(best) if place == 0 or index != best[place - 1]]
    return "".join(_alphabet()[index] for index in kept)
