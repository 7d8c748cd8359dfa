"""Small models of ONNX Runtime's own, and what is done with them again and again: load, run, and see what is refused."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from conformance.drawing.elements import MS, Array, raw_tensor
from conformance.sessions import CPU, quiet_options

__all__ = [
    "DIRECT_KEY",
    "FOLDER_KEY",
    "IR_VERSION",
    "OPSETS",
    "PARALLEL_KEY",
    "WIDTH",
    "counted",
    "external_tensor",
    "identity_model",
    "inline_tensor",
    "last_sentence",
    "load",
    "mapped_file",
    "mapping_of",
    "matmul_nbits_model",
    "model_of",
    "nbits_node",
    "options_with",
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
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
IR_VERSION = 10


def counted(start: int = 1) -> Array:
    """WIDTH numbers, counted from `start`."""
    return np.arange(start, start + WIDTH, dtype=np.float32)


def inline_tensor(
    name: str, values: Array, data_type: int = TensorProto.FLOAT, dims: Sequence[int] | None = None
) -> TensorProto:
    """A tensor whose bytes are in the model."""
    return raw_tensor(name, data_type, values.shape if dims is None else dims, values.tobytes())


def external_tensor(
    name: str, location: str, offset: int, length: int, *, data_type: int = TensorProto.FLOAT, dims: Sequence[int] = (WIDTH,)
) -> TensorProto:
    """A tensor whose bytes are elsewhere."""
    tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model_of(
    nodes: Sequence[onnx.NodeProto], initializers: Sequence[TensorProto], shape: Sequence[int | str] = (WIDTH,)
) -> onnx.ModelProto:
    """A float model from x to y."""
    float_value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "contract", [float_value("x", TensorProto.FLOAT, shape)], [float_value("y", TensorProto.FLOAT, None)]
    )
    graph.initializer.extend(initializers)
    return helper.make_model(graph, ir_version=IR_VERSION, opset_imports=OPSETS)


def sum_model(*initializers: TensorProto) -> bytes:
    """y = x + each of the initializers: none of them is pre-packed, so that the kernel reads the initializer itself."""
    nodes, value = [], "x"
    for index, tensor in enumerate(initializers):
        result = "y" if index == len(initializers) - 1 else f"h{index}"
        nodes.append(helper.make_node("Add", [value, tensor.name], [result]))
        value = result
    return bytes(model_of(nodes, initializers).SerializeToString())


def options_with(**entries: str) -> Any:
    """Quiet SessionOptions with config entries; `__` in a name stands for a dot."""
    options = quiet_options()
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    return options


def load(model: str | bytes, options: Any = None) -> Any:
    """A session on the CPU."""
    return ort.InferenceSession(model, options or options_with(), providers=CPU, enable_fallback=0)


def result_of(session: Any, x: Array | None = None) -> Array:
    """The session's y for x, or for zeros."""
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


def nbits_node(
    inputs: Sequence[str], output: str, k: int, n: int, *, bits: int = 4, block: int = 32, level: int = 4
) -> onnx.NodeProto:
    """A product with weights in blocks."""
    return helper.make_node(
        "MatMulNBits", inputs, [output], domain=MS,
        K=k, N=n, bits=bits, block_size=block, accuracy_level=level,
    )  # fmt: skip


def matmul_nbits_model(
    k: int, n: int, operands: Sequence[TensorProto], *, bits: int = 4, block: int = 32, level: int = 4
) -> bytes:
    """y = x times the weight that the operands, in their order, are."""
    node = nbits_node(["x", *(tensor.name for tensor in operands)], "y", k, n, bits=bits, block=block, level=level)
    return bytes(model_of([node], operands, ["rows", k]).SerializeToString())


def last_sentence(text: str) -> str:
    """The end of one of ONNX Runtime's error messages, which begin with where in its source they come from."""
    return text.strip().splitlines()[-1].rpartition(" , ")[2][-120:]


def identity_model() -> bytes:
    """y = x: the smallest model there is."""
    return bytes(model_of([helper.make_node("Identity", ["x"], ["y"])], []).SerializeToString())
