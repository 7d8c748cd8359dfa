"""What the tests on other people's models share: looking at a graph, stock sessions, and a QOperator twin.

Nothing here uses the package under test: the twin is written with plain NumPy so that it can disagree.
"""

import importlib.util
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from conformance.drawing.canvas import Canvas
from conformance.drawing.elements import ELEMENTS, MS, pack

__all__ = [
    "Array", "Decoded", "WeightDequantize", "assert_all_fused", "constants_as_nodes", "decode_greedily",
    "dequantized_weights", "fused_by_stock", "nbits", "needs", "package_folder", "qoperator_twin", "relative_error",
    "run_script", "small_network", "stock_session", "twin_session", "without_warnings", "y_of",
]  # fmt: skip

Array = NDArray[Any]
ROOT = Path(__file__).parents[2]


def needs(*modules: str) -> pytest.MarkDecorator:
    """A mark that skips tests unless all of `modules` are installed; none of them is imported."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def package_folder(module: str) -> Path:
    """Where an installed package keeps its files; it is not imported."""
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def run_script(script: str, *arguments: str | Path) -> None:
    """Run a model-making script of this folder in its own process, to keep its libraries out of ours."""
    quiet = {"HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, check=False, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{script} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def without_warnings(call: Callable[[], object]) -> None:
    """Call something that logs at length."""
    logging.disable(logging.WARNING)
    try:
        call()
    finally:
        logging.disable(logging.NOTSET)


def nbits(model: onnx.ModelProto, *, symmetric: bool, block_size: int = 32, channel_wise: bool = False) -> onnx.ModelProto:
    """A copy of `model` after ONNX Runtime's own weight-only quantizer, QDQ format, 4 bits."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
    from onnxruntime.quantization.quant_utils import QuantFormat

    config = DefaultWeightOnlyQuantConfig(
        block_size=block_size, is_symmetric=symmetric, quant_format=QuantFormat.QDQ, channel_wised_quantize=channel_wise
    )
    quantizer = MatMulNBitsQuantizer(onnx.ModelProto.FromString(model.SerializeToString()), algo_config=config)
    without_warnings(quantizer.process)
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


# ---------------------------------------------------------------------------------------- looking at a graph


class WeightDequantize(NamedTuple):
    """A DequantizeLinear of a constant weight and the matrix product that it reaches."""

    node: onnx.NodeProto
    weight: onnx.TensorProto
    scales: onnx.TensorProto
    zero_points: onnx.TensorProto | None
    axis: int
    block_size: int
    passed: list[onnx.NodeProto]  # nodes between the DequantizeLinear and the product
    product: onnx.NodeProto
    bias_add: onnx.NodeProto | None  # the only reader of the product, where it adds a constant [N]

    @property
    def type_name(self) -> str:
        return str(onnx.TensorProto.DataType.Name(self.weight.data_type))

    @property
    def bits(self) -> int:
        return ELEMENTS[self.type_name.lower()].bits

    @property
    def n_major(self) -> bool:
        return bool(self.passed) or bool(_attribute(self.product, "transB", 0))


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def dequantized_weights(model: onnx.ModelProto) -> list[WeightDequantize]:
    """Every DequantizeLinear of a constant whose only path leads to one MatMul or Gemm."""
    found: list[WeightDequantize] = []
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "Constant" and _attribute(node, "value", None) is not None:
            constants[node.output[0]] = _attribute(node, "value", None)
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        passed: list[onnx.NodeProto] = []
        following = readers.get(node.output[0], [])
        while len(following) == 1 and following[0].op_type == "Transpose":
            passed += following
            following = readers.get(following[0].output[0], [])
        if len(following) != 1 or following[0].op_type not in ("MatMul", "Gemm"):
            continue
        (product,) = following
        weight, scales, *zeros = (constants[name] for name in node.input if name)
        adds = readers.get(product.output[0], [])
        biases = [name for add in adds for name in add.input if name in constants and len(constants[name].dims) == 1]
        is_biased = len(product.input) == 2 and len(adds) == 1 and adds[0].op_type == "Add" and len(biases) == 1
        bias_add, zero_points = adds[0] if is_biased else None, zeros[0] if zeros else None
        axis, block_size = _attribute(node, "axis", 1), _attribute(node, "block_size", 0)
        found.append(WeightDequantize(node, weight, scales, zero_points, axis, block_size, passed, product, bias_add))
    return found


def constants_as_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its initializers as Constant nodes, as some exporters write them."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in changed.graph.initializer]
    del changed.graph.initializer[:], changed.graph.node[:]
    changed.graph.node.extend([*nodes, *model.graph.node])
    return changed


# ------------------------------------------------------------------------------------------ a QOperator twin


def _unsigned(tensor: onnx.TensorProto) -> Array:
    """The elements of a quantized tensor, moved to 0 ... 2**bits - 1 if they are signed."""
    kind = ELEMENTS[onnx.TensorProto.DataType.Name(tensor.data_type).lower()]
    return (numpy_helper.to_array(tensor).astype(np.int16) - kind.low).astype(np.uint8)


def _matmul_nbits(found: WeightDequantize, accuracy_level: int, adds: bool) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    weight, scales, block_size = _unsigned(found.weight), numpy_helper.to_array(found.scales), found.block_size
    zeros = None if found.zero_points is None else _unsigned(found.zero_points)
    if zeros is None and not found.type_name.startswith("INT"):
        zeros = np.zeros(scales.shape, np.uint8)
    operands = [scales] if zeros is None else [scales, zeros]
    if block_size:
        assert found.axis % 2 == int(found.n_major), "blocks do not run along K"
    else:  # one scale for each column, or for all: the blocks of a column all have the same
        block_size, axis = 32, int(found.n_major)
        columns = np.roll((-1, 1), 1 - axis)
        full = [-(-size // block_size) if at == axis else size for at, size in enumerate(weight.shape)]
        operands = [np.broadcast_to(one.reshape(columns), full) for one in operands]
    if not found.n_major:
        weight, operands = weight.T, [one.T for one in operands]
    n, k = weight.shape
    weight = np.pad(weight, [(0, 0), (0, -k % block_size)])
    packed = [pack(weight, found.bits).reshape(n, -1, block_size * found.bits // 8), np.ascontiguousarray(operands[0])]
    packed += [pack(one, found.bits) for one in operands[1:]]
    prefix = found.product.output[0]
    names = ("B", "scales", "zero_points")
    tensors = [numpy_helper.from_array(one, f"{prefix}/{name}") for one, name in zip(packed, names, strict=False)]
    inputs = [found.product.input[0], *(tensor.name for tensor in tensors)]
    biased = found.bias_add if adds and found.bias_add is not None else found.product
    bias = [name for name in biased.input if name not in (*found.product.input[:2], found.product.output[0])]
    if bias:
        inputs += [""] * (5 - len(inputs)) + bias
    node = helper.make_node(
        "MatMulNBits", inputs, list(biased.output), name=found.product.name, domain=MS, K=k, N=n, bits=found.bits,
        block_size=block_size, accuracy_level=accuracy_level,
    )  # fmt: skip
    return node, tensors


def qoperator_twin(model: onnx.ModelProto, accuracy_level: int = 4, adds: bool = True) -> onnx.ModelProto:
    """The model with each DequantizeLinear -> [Transpose] -> MatMul | Gemm -> [Add] as one MatMulNBits.

    Args:
        model: It is not changed.
        accuracy_level: Of the new nodes.
        adds: Whether biases that an Add adds become theirs.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    replaced: dict[str, onnx.NodeProto] = {}
    dropped: set[str] = set()
    for found in dequantized_weights(twin):
        node, tensors = _matmul_nbits(found, accuracy_level, adds)
        replaced[node.output[0]] = node
        dropped.update(other.output[0] for other in (found.node, *found.passed, found.product))
        twin.graph.initializer.extend(tensors)
    nodes = [
        replaced.get(node.output[0], node) for node in twin.graph.node if node.output[0] not in dropped - replaced.keys()
    ]
    used = {name for node in nodes for name in node.input} | {value.name for value in twin.graph.output}
    kept = [tensor for tensor in twin.graph.initializer if tensor.name in used]
    del twin.graph.node[:], twin.graph.initializer[:]
    twin.graph.node.extend(nodes)
    twin.graph.initializer.extend(kept)
    if all(opset.domain != MS for opset in twin.opset_import):
        twin.opset_import.append(helper.make_opsetid(MS, 1))
    return twin


# -------------------------------------------------------------------------------------------------- sessions


def stock_session(
    model: str | Path | bytes, optimized: Path | None = None, level: str = "ORT_ENABLE_ALL"
) -> ort.InferenceSession:
    """A session of ONNX Runtime without this package."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(model if isinstance(model, bytes) else str(model), options)


def twin_session(model: onnx.ModelProto, **options: Any) -> ort.InferenceSession:
    """A stock session of the model's QOperator twin."""
    return stock_session(qoperator_twin(model, **options).SerializeToString())


def fused_by_stock(model: str | Path | bytes, folder: Path) -> Counter[str]:
    """How many nodes of each kind stock ONNX Runtime keeps after its own optimizations."""
    optimized = folder / "optimized.onnx"
    stock_session(model, optimized)
    graph = onnx.load(optimized, load_external_data=False).graph
    optimized.unlink()
    return Counter(node.op_type for node in graph.node)


def assert_all_fused(report: Any, model: onnx.ModelProto) -> Any:
    """Every dequantized weight of `model` is fused, with its own K, N and bits, and nothing is left. Gives the report."""
    expected = dequantized_weights(model)
    assert expected, "the tool wrote no quantized weight"
    assert report is not None, "the session is not this package's"
    assert report.stock_reason is None, report.stock_message
    assert not report.unfused, [f"{unfused.dequantize}: {unfused.reason}" for unfused in report.unfused]
    shapes = Counter((*found.weight.dims[:: -1 if found.n_major else 1], found.bits) for found in expected)
    assert Counter((fusion.k, fusion.n, fusion.bits) for fusion in report.fused) == shapes
    assert {fusion.dequantize for fusion in report.fused} >= {found.node.name for found in expected if found.node.name}
    return report


def relative_error(actual: Array, expected: Array) -> float:
    """The largest difference, as a part of the largest expected value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def small_network(opset: int, activation: str = "Sigmoid") -> onnx.ModelProto:
    """Three linear layers, x [batch, sequence, 96] -> y [batch, sequence, 75]: the second has no bias."""
    drawn, rng = Canvas(opset), np.random.default_rng(11)
    drawn.input("x", ["batch", "sequence", 96])
    for name, shape in (("a", (96, 160)), ("a.bias", (160,)), ("b", (160, 96)), ("c", (96, 75)), ("c.bias", (75,))):
        drawn.initializers.append(numpy_helper.from_array((rng.standard_normal(shape) / 10).astype(np.float32), f"{name}.w"))
    first = drawn.node("Add", [drawn.node("MatMul", ["x", "a.w"], "a.product"), "a.bias.w"], "a.sum")
    second = drawn.node("MatMul", [drawn.node("Sigmoid", [first], "a"), "b.w"], "b.product")
    third = drawn.node("MatMul", [drawn.node(activation, [second], "b"), "c.w"], "c.product")
    drawn.node("Add", ["c.bias.w", third], "y")
    drawn.output("y", ["batch", "sequence", 75])
    return drawn.model()


def y_of(session: ort.InferenceSession) -> Array:
    """What a session of the small network gives for some x."""
    x = np.random.default_rng(3).standard_normal((2, 7, 96)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


# ------------------------------------------------------------------------------------------- greedy decoding


class Decoded(NamedTuple):
    """What a greedy decoding gave."""

    tokens: list[int]
    logits: Array  # [tokens, vocabulary]: what each token was chosen from
    margin: float  # the smallest lead of a chosen token over the next best


def decode_greedily(session: ort.InferenceSession, prompt: Sequence[int], head_size: int, count: int = 64) -> Decoded:
    """Decode `count` tokens, feeding the present key/values back as the past ones."""
    inputs = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
    past = {value.name: np.zeros([1, value.shape[1], 0, head_size], np.float32) for value in inputs}
    names = [value.name for value in session.get_outputs()]
    tokens: list[int] = []
    chosen_from: list[Array] = []
    step = list(prompt)
    while len(tokens) < count:
        seen = len(prompt) + len(tokens)
        feed = {"input_ids": np.array([step], np.int64), "attention_mask": np.ones((1, seen), np.int64), **past}
        outputs = dict(zip(names, session.run(names, feed), strict=True))
        chosen_from.append(outputs["logits"][0, -1])
        tokens.append(int(chosen_from[-1].argmax()))
        past = {name.replace("present.", "past_key_values."): outputs[name] for name in names if name != "logits"}
        step = tokens[-1:]
    best = np.sort(chosen_from, axis=1)
    return Decoded(tokens, np.stack(chosen_from), float((best[:, -1] - best[:, -2]).min()))
