"""What contracts do again and again with small models: draw, load and run them, and say what is not as it should be."""

import mmap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from conformance.drawing.canvas import Canvas
from conformance.drawing.elements import MS, Array, Dim, external_tensor, raw_tensor
from conformance.sessions import CPU, quiet_options

__all__ = [
    "FOLDER_KEY", "PARALLEL_KEY", "WIDTH", "BrokenError", "borrowing", "counted", "elsewhere", "expect", "expect_equal",
    "expect_refusal", "identity_model", "inline_tensor", "load", "mapped_file", "mapping_of", "meanwhile", "model_of",
    "options_with", "product_model", "random_operands", "result_of", "sum_model", "sum_of_file",
]  # fmt: skip

FOLDER_KEY = "session.model_external_initializers_file_folder_path"
PARALLEL_KEY = "session.prepack.enable_parallel"
WIDTH = 1024
"""Elements of the small models' one initializer: more than ONNX Runtime takes for a shape or a scalar."""


class BrokenError(Exception):
    """ONNX Runtime does not do what is relied on."""


def expect(holds: bool, otherwise: str) -> None:
    """Raises BrokenError with what is otherwise."""
    if not holds:
        raise BrokenError(otherwise)


def expect_equal(result: Array, expected: Array, otherwise: str = "wrong values") -> None:
    """Raises BrokenError unless the values are equal, bit by bit."""
    expect(np.array_equal(result, expected), otherwise)


def expect_refusal(load: Callable[[], object], otherwise: str) -> str:
    """What ONNX Runtime said when it refused, without where in its source; raises BrokenError if it did not."""
    try:
        load()
    except Exception as error:  # ONNX Runtime's exception classes share no base of their own
        return f"refused: {str(error).strip().splitlines()[-1].rpartition(' , ')[2]}"
    raise BrokenError(otherwise)


@contextmanager
def meanwhile(action: Callable[[], object], pause: float = 0.0) -> Iterator[None]:
    """A thread that acts over and over, with that many seconds between."""
    finished = threading.Event()

    def act() -> None:
        while not finished.wait(pause):
            action()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


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


def sum_of_file(location: str = "w", offset: int = 0) -> bytes:
    """A model that adds the WIDTH floats which are in a file from that byte on."""
    return sum_model(elsewhere("w", location, offset))


def identity_model(shape: Sequence[Dim] = (WIDTH,)) -> bytes:
    """The smallest model there is."""
    canvas = Canvas()
    return model_of(canvas, canvas.node("Identity", ["x"]), shape)


def product_model(k: int, n: int, *weights: Sequence[TensorProto], bits: int = 4, level: int = 4) -> bytes:
    """x times each of the weights that these operands are, in blocks of 32, one result behind the other."""
    canvas, products = Canvas(), []
    for operands in weights:
        canvas.initializers += operands
        inputs = ["x", *(tensor.name for tensor in operands)]
        sizes: dict[str, Any] = {"K": k, "N": n, "bits": bits, "block_size": 32, "accuracy_level": level}
        products.append(canvas.node("MatMulNBits", inputs, domain=MS, **sizes))
    return model_of(canvas, canvas.node("Concat", products, axis=0), ["rows", k])


def random_operands(k: int, n: int, seed: int = 0) -> list[TensorProto]:
    """A 4-bit weight for such a product, and its scales."""
    rng = np.random.default_rng(seed)
    b, scales = rng.integers(0, 256, (n, k // 32, 16), np.uint8), rng.random(n * k // 32, np.float32)
    return [inline_tensor(f"b{seed}", b, TensorProto.UINT8), inline_tensor(f"s{seed}", scales)]


def options_with(entries: Mapping[str, str] = {}, **files: Any) -> Any:
    """Quiet SessionOptions with config entries, and with buffers as files in memory."""
    options = quiet_options()
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    if files:
        buffers = list(files.values())
        options.add_external_initializers_from_files_in_memory(list(files), buffers, list(map(len, buffers)))
    return options


def borrowing(**files: Any) -> Any:
    """Options with files in memory that a session uses in place; who asks keeps them."""
    return options_with({"session.use_external_initializer_file_buffers_directly": "1"}, **files)


def load(model: str | bytes, options: Any = None) -> Any:
    return ort.InferenceSession(model, options or options_with(), providers=CPU, enable_fallback=0)


def result_of(session: Any, x: Array | None = None) -> Array:
    """The session's output for x, or for zeros."""
    return np.asarray(session.run(None, {"x": np.zeros(WIDTH, np.float32) if x is None else x})[0])


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
