"""What the tests on other people's models share: looking at a graph, stock sessions, and a QOperator twin.

Nothing here uses the package under test: the twin is written with plain NumPy so that it can disagree.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = [
    "Decoded",
    "WeightDequantize",
    "assert_all_fused",
    "constants_as_nodes",
    "decode_greedily",
    "dequantized_weights",
    "fused_by_stock",
    "nbits",
    "needs",
    "qoperator_twin",
    "relative_error",
    "run_script",
    "small_network",
    "stock_session",
]

Array = NDArray[Any]
BITS = {"INT2": 2, "UINT2": 2, "INT4": 4, "UINT4": 4, "INT8": 8, "UINT8": 8}
SIGNED = {"INT2", "INT4", "INT8"}


def needs(*modules: str) -> pytest.MarkDecorator:
    """A mark that skips tests unless all of `modules` are installed; none of them is imported."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run_script(script: str, *arguments: str | Path) -> None:
    """Run a model-making script of this folder in its own process, to keep its libraries out of ours."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OLIVE_DISABLE_TELEMETRY": "1",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *map(str, arguments)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{script} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def nbits(model: onnx.ModelProto, *, symmetric: bool, block_size: int = 32, channel_wise: bool = False) -> onnx.ModelProto:
    """A copy of `model` after ONNX Runtime's own weight-only quantizer, QDQ format, 4 bits."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
    from onnxruntime.quantization.quant_utils import QuantFormat

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    config = DefaultWeightOnlyQuantConfig(
        block_size=block_size,
        is_symmetric=symmetric,
        quant_format=QuantFormat.QDQ,
        channel_wised_quantize=channel_wise,
    )
    logging.disable(logging.WARNING)
    try:
        quantizer = MatMulNBitsQuantizer(copy, algo_config=config)
        quantizer.process()
    finally:
        logging.disable(logging.NOTSET)
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


# ---------------------------------------------------------------------------------------- looking at a graph


@dataclass(frozen=True)
class WeightDequantize:
    """A DequantizeLinear of a constant weight and the matrix product that it reaches."""

    node: onnx.NodeProto
    weight: onnx.TensorProto
    scales: onnx.TensorProto
    zero_points: onnx.TensorProto | None
    axis: int
    block_size: int
    passed: tuple[onnx.NodeProto, ...]  # nodes between the DequantizeLinear and the product
    product: onnx.NodeProto
    bias_add: onnx.NodeProto | None  # the only reader of the product, where it adds a constant [N]

    @property
    def type_name(self) -> str:
        return str(onnx.TensorProto.DataType.Name(self.weight.data_type))


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and _attribute(node, "value", None) is not None:
            found[node.output[0]] = _attribute(node, "value", None)
    return found


def dequantized_weights(model: onnx.ModelProto) -> list[WeightDequantize]:
    """Every DequantizeLinear of a constant whose only path leads to one MatMul or Gemm."""
    constants = _constants(model)
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    return list(_dequantized(model.graph.node, constants, consumers))


def _dequantized(
    nodes: Iterable[onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
    consumers: Mapping[str, Sequence[onnx.NodeProto]],
) -> Iterator[WeightDequantize]:
    for node in nodes:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        passed: list[onnx.NodeProto] = []
        following = consumers.get(node.output[0], ())
        while len(following) == 1 and following[0].op_type == "Transpose":
            passed.append(following[0])
            following = consumers.get(following[0].output[0], ())
        if len(following) != 1 or following[0].op_type not in ("MatMul", "Gemm"):
            continue
        yield WeightDequantize(
            node=node,
            weight=constants[node.input[0]],
            scales=constants[node.input[1]],
            zero_points=constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None,
            axis=_attribute(node, "axis", 1),
            block_size=_attribute(node, "block_size", 0),
            passed=tuple(passed),
            product=following[0],
            bias_add=_bias_add(following[0], constants, consumers),
        )


def _bias_add(
    product: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    consumers: Mapping[str, Sequence[onnx.NodeProto]],
) -> onnx.NodeProto | None:
    readers = consumers.get(product.output[0], ())
    if len(product.input) > 2 or len(readers) != 1 or readers[0].op_type != "Add":
        return None
    others = [name for name in readers[0].input if name in constants and len(constants[name].dims) == 1]
    return readers[0] if len(others) == 1 else None


def constants_as_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its initializers as Constant nodes, as some exporters write them."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in changed.graph.initializer]
    nodes.extend(changed.graph.node)
    del changed.graph.initializer[:]
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


# ------------------------------------------------------------------------------------------ a QOperator twin


def _pack_blocks(values: Array, bits: int, block_size: int) -> Array:
    """Elements [N, K] -> bytes [N, blocks, block_size * bits / 8], first element in the low bits."""
    n, k = values.shape
    blocks = -(-k // block_size)
    padded = np.zeros((n, blocks * block_size), np.uint8)
    padded[:, :k] = values
    return _pack_rows(padded, bits).reshape(n, blocks, block_size * bits // 8)


def _pack_rows(values: Array, bits: int) -> Array:
    """Elements [N, M] -> bytes [N, ceil(M * bits / 8)]."""
    per_byte = 8 // bits
    n, m = values.shape
    padded = np.zeros((n, -(-m // per_byte) * per_byte), np.uint8)
    padded[:, :m] = values
    packed = np.zeros((n, padded.shape[1] // per_byte), np.uint8)
    for place in range(per_byte):
        packed |= padded[:, place::per_byte] << np.uint8(place * bits)
    return packed


def _unsigned(tensor: onnx.TensorProto) -> Array:
    """The elements of a quantized tensor, moved to 0 ... 2**bits - 1 if they are signed."""
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    values = numpy_helper.to_array(tensor).astype(np.int16)
    return (values + (1 << (BITS[name] - 1)) if name in SIGNED else values).astype(np.uint8)


def _matmul_nbits(
    found: WeightDequantize, accuracy_level: int, bias_add: onnx.NodeProto | None
) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    bits = BITS[found.type_name]
    weight, scales = _unsigned(found.weight), numpy_helper.to_array(found.scales)
    zeros = _unsigned(found.zero_points) if found.zero_points is not None else None
    if zeros is None and found.type_name not in SIGNED:
        zeros = np.zeros(scales.shape, np.uint8)
    axis = found.axis % 2
    n_major = bool(found.passed) or bool(_attribute(found.product, "transB", 0))
    k = weight.shape[1 if n_major else 0]
    block_size = found.block_size
    if not block_size:  # one scale for each column, or for all: the blocks of a column all have the same
        block_size = 32
        blocks, n = -(-k // block_size), weight.size // k
        full, columns = ((n, blocks), (-1, 1)) if n_major else ((blocks, n), (1, -1))
        scales = np.broadcast_to(scales.reshape(columns), full)
        zeros = None if zeros is None else np.broadcast_to(zeros.reshape(columns), full)
    else:
        assert axis == (1 if n_major else 0), "blocks do not run along K"
    if not n_major:
        weight, scales = weight.T, scales.T
        zeros = None if zeros is None else zeros.T
    prefix = found.product.output[0]
    tensors = [
        numpy_helper.from_array(_pack_blocks(weight, bits, block_size), f"{prefix}/B"),
        numpy_helper.from_array(np.ascontiguousarray(scales), f"{prefix}/scales"),
    ]
    if zeros is not None:
        tensors.append(numpy_helper.from_array(_pack_rows(zeros, bits), f"{prefix}/zero_points"))
    inputs = [found.product.input[0], *(tensor.name for tensor in tensors)]
    biased = bias_add or found.product
    bias = [name for name in biased.input if name not in (*found.product.input[:2], found.product.output[0])]
    if bias:
        inputs += [""] * (5 - len(inputs)) + bias
    node = helper.make_node(
        "MatMulNBits",
        inputs,
        list(biased.output),
        name=found.product.name,
        domain="com.microsoft",
        K=k,
        N=weight.shape[0],
        bits=bits,
        block_size=block_size,
        accuracy_level=accuracy_level,
    )
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
        bias_add = found.bias_add if adds else None
        node, tensors = _matmul_nbits(found, accuracy_level, bias_add)
        replaced[node.output[0]] = node
        folded = (found.product,) if bias_add is not None else ()
        dropped.update(other.output[0] for other in (found.node, *found.passed, *folded))
        twin.graph.initializer.extend(tensors)
    nodes = [replaced.get(node.output[0], node) for node in twin.graph.node if node.output[0] not in dropped]
    used = {name for node in nodes for name in node.input} | {value.name for value in twin.graph.output}
    kept = [tensor for tensor in twin.graph.initializer if tensor.name in used]
    del twin.graph.node[:], twin.graph.initializer[:]
    twin.graph.node.extend(nodes)
    twin.graph.initializer.extend(kept)
    if all(opset.domain != "com.microsoft" for opset in twin.opset_import):
        twin.opset_import.append(helper.make_opsetid("com.microsoft", 1))
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


def fused_by_stock(model: str | Path | bytes, folder: Path) -> Counter[str]:
    """How many nodes of each kind stock ONNX Runtime keeps after its own optimizations."""
    optimized = folder / "optimized.onnx"
    stock_session(model, optimized)
    graph = onnx.load(optimized, load_external_data=False).graph
    optimized.unlink()
    return Counter(node.op_type for node in graph.node)


def assert_all_fused(report: Any, model: onnx.ModelProto) -> None:
    """Every dequantized weight of `model` is fused, with its own K, N and bits, and nothing is left."""
    expected = dequantized_weights(model)
    assert expected, "the tool wrote no quantized weight"
    assert report is not None, "the session is not this package's"
    assert report.stock_reason is None, report.stock_message
    assert not report.unfused, [f"{unfused.dequantize}: {unfused.reason}" for unfused in report.unfused]
    facts = Counter((fusion.k, fusion.n, fusion.bits) for fusion in report.fused)
    shapes = Counter((*_k_and_n(found), BITS[found.type_name]) for found in expected)
    assert facts == shapes
    assert {fusion.dequantize for fusion in report.fused} >= {found.node.name for found in expected if found.node.name}


def _k_and_n(found: WeightDequantize) -> tuple[int, int]:
    rows, columns = found.weight.dims
    n_major = bool(found.passed) or bool(_attribute(found.product, "transB", 0))
    return (columns, rows) if n_major else (rows, columns)


def relative_error(actual: Array, expected: Array) -> float:
    """The largest difference, as a part of the largest expected value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def small_network(opset: int, activation: str = "Sigmoid") -> onnx.ModelProto:
    """Three linear layers, x [batch, sequence, 96] -> y [batch, sequence, 75]: the second has no bias."""
    random = np.random.default_rng(11)
    shapes = {
        "a.weight": (96, 160),
        "a.bias": (160,),
        "b.weight": (160, 96),
        "c.weight": (96, 75),
        "c.bias": (75,),
    }
    tensors = [
        numpy_helper.from_array((random.standard_normal(shape) / 10).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight"], ["a.product"], name="/a/MatMul"),
        helper.make_node("Add", ["a.product", "a.bias"], ["a.sum"], name="/a/Add"),
        helper.make_node("Sigmoid", ["a.sum"], ["a"], name="/a/Sigmoid"),
        helper.make_node("MatMul", ["a", "b.weight"], ["b.product"], name="/b/MatMul"),
        helper.make_node(activation, ["b.product"], ["b"], name=f"/b/{activation}"),
        helper.make_node("MatMul", ["b", "c.weight"], ["c.product"], name="/c/MatMul"),
        helper.make_node("Add", ["c.bias", "c.product"], ["y"], name="/c/Add"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", "sequence", 96])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", "sequence", 75])],
        tensors,
    )
    ir_version = 10 if opset >= 21 else 8
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


# ------------------------------------------------------------------------------------------- greedy decoding


@dataclass(frozen=True)
class Decoded:
    """What a greedy decoding gave."""

    tokens: tuple[int, ...]
    logits: Array  # [tokens, vocabulary]: what each token was chosen from
    margin: float  # the smallest lead of a chosen token over the next best
    milliseconds: float  # median time of a one-token step


def decode_greedily(session: ort.InferenceSession, prompt: Sequence[int], head_size: int, count: int = 64) -> Decoded:
    """Decode `count` tokens, feeding the present key/values back as the past ones."""
    past = {
        value.name: np.zeros([1, value.shape[1], 0, head_size], np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    names = [value.name for value in session.get_outputs()]
    tokens: list[int] = []
    chosen_from: list[Array] = []
    times: list[float] = []
    step = list(prompt)
    seen = len(step)
    while len(tokens) < count:
        feed: dict[str, Array] = {
            "input_ids": np.array([step], np.int64),
            "attention_mask": np.ones((1, seen), np.int64),
            **past,
        }
        start = time.perf_counter()
        outputs = dict(zip(names, session.run(names, feed), strict=True))
        times.append(time.perf_counter() - start)
        logits = outputs["logits"][0, -1]
        chosen_from.append(logits)
        tokens.append(int(logits.argmax()))
        past = {name.replace("present.", "past_key_values."): outputs[name] for name in names if name != "logits"}
        step = tokens[-1:]
        seen += 1
    all_logits = np.stack(chosen_from)
    best = np.sort(all_logits, axis=1)
    return Decoded(
        tokens=tuple(tokens),
        logits=all_logits,
        margin=float((best[:, -1] - best[:, -2]).min()),
        milliseconds=float(np.median(times[1:])) * 1e3,
    )
