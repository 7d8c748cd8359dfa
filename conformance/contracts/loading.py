"""What contracts do again and again with small models: draw, load and run them, and see what is refused."""

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from conformance.drawing.canvas import Canvas
from conformance.drawing.elements import MS, Array, Dim, external_tensor, raw_tensor
from conformance.sessions import CPU, quiet_options

__all__ = [
    "DIRECT_KEY",
    "FOLDER_KEY",
    "PARALLEL_KEY",
    "WIDTH",
    "counted",
    "elsewhere",
    "identity_model",
    "inline_tensor",
    "last_sentence",
    "load",
    "mapped_file",
    "mapping_of",
    "model_of",
    "options_with",
    "product",
    "product_model",
    "refusal_of",
    "result_of",
    "sum_model",
    "with_files",
]

DIRECT_KEY = "session.use_external_initializer_file_buffers_directly"
FOLDER_KEY = "session.model_external_initializers_file_folder_path"
PARALLEL_KEY = "session.prepack.enable_parallel"
WIDTH = 1024
"""Elements of the small models' one initializer: more than ONNX Runtime takes for a shape or a scalar."""


def counted(start: int = 1) -> Array:
    """WIDTH numbers, counted from `start`."""
    return np.arange(start, start + WIDTH, dtype=np.float32)


def inline_tensor(name: str, values: Array, code: int = TensorProto.FLOAT, dims: Sequence[int] | None = None) -> TensorProto:
    """A tensor whose bytes are in the model."""
    return raw_tensor(name, code, values.shape if dims is None else dims, values.tobytes())


def elsewhere(name: str, location: str, offset: int = 0) -> TensorProto:
    """WIDTH numbers that are elsewhere."""
    return external_tensor(name, TensorProto.FLOAT, [WIDTH], location, offset, 4 * WIDTH)


def model_of(canvas: Canvas, output: str, shape: Sequence[Dim] = (WIDTH,)) -> bytes:
    """What was drawn, from x to this output."""
    canvas.input("x", shape)
    canvas.output(output, None)
    return bytes(canvas.model().SerializeToString())


def sum_model(*initializers: TensorProto) -> bytes:
    """x + each of the initializers: none of them is pre-packed, so that the kernel reads the initializer itself."""
    canvas, value = Canvas(), "x"
    canvas.initializers += initializers
    for tensor in initializers:
        value = canvas.node("Add", [value, tensor.name])
    return model_of(canvas, value)


def identity_model(shape: Sequence[Dim] = (WIDTH,)) -> bytes:
    """The smallest model there is."""
    canvas = Canvas()
    return model_of(canvas, canvas.node("Identity", ["x"]), shape)


def product(canvas: Canvas, operands: Sequence[TensorProto], k: int, n: int, *, bits: int = 4, level: int = 4) -> str:
    """Adds x times the weight that the operands, in their order, are, in blocks of 32."""
    canvas.initializers += operands
    inputs, sizes = ["x", *(tensor.name for tensor in operands)], {"K": k, "N": n, "bits": bits, "accuracy_level": level}
    return canvas.node("MatMulNBits", inputs, "", domain=MS, block_size=32, **sizes)


def product_model(operands: Sequence[TensorProto], k: int, n: int, *, bits: int = 4, level: int = 4) -> bytes:
    """The model of such a product."""
    canvas = Canvas()
    return model_of(canvas, product(canvas, operands, k, n, bits=bits, level=level), ["rows", k])


def options_with(**entries: str) -> Any:
    """Quiet SessionOptions with config entries."""
    options = quiet_options()
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def load(model: str | bytes, options: Any = None) -> Any:
    """A session on the CPU."""
    return ort.InferenceSession(model, options or options_with(), providers=CPU, enable_fallback=0)


def result_of(session: Any, x: Array | None = None) -> Array:
    """The session's output for x, or for zeros."""
    return np.asarray(session.run(None, {"x": np.zeros(WIDTH, np.float32) if x is None else x})[0])


def refusal_of(load: Callable[[], object]) -> str | None:
    """What ONNX Runtime said when it refused, None when it did not."""
    try:
        load()
    except Exception as error:  # ONNX Runtime's exception classes share no base of their own
        return str(error)
    return None


def with_files(options: Any, **buffers: Any) -> Any:
    """Add the buffers as files in memory, under their names."""
    lengths = [len(buffer) for buffer in buffers.values()]
    options.add_external_initializers_from_files_in_memory(list(buffers), list(buffers.values()), lengths)
    return options


def mapping_of(values: Array) -> mmap.mmap:
    """An anonymous mapping that holds the values."""
    mapping = mmap.mmap(-1, values.nbytes)
    mapping[:] = values.tobytes()
    return mapping


def mapped_file(path: Path, values: bytes, access: int = mmap.ACCESS_WRITE) -> mmap.mmap:
    """A shared mapping of a new file."""
    path.write_bytes(values)
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), 0, access=access)


def last_sentence(text: str) -> str:
    """The end of one of ONNX Runtime's error messages, which begin with where in its source they come from."""
    return text.strip().splitlines()[-1].rpartition(" , ")[2][-120:]
