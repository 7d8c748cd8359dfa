"""The report against reality: what it says of each weight, and the graph that ONNX Runtime's optimizer makes.

    python -m conformance.claims [--only GLOB] [--markdown FILE]

A row is a small network as ONNX Runtime's quantizers write it in one of their variants, static and dynamic. It passes if
every claim of the report is true: each fused node is there, each other weight is dequantized as often on every run as the
bytes say, and no integer kernel of stock ONNX Runtime is gone. The exit code is 1 if a row fails.
"""

import logging
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from conformance.checks import parser, run
from conformance.drawing.canvas import graphs_of
from conformance.drawing.draft import ROWS, Draft
from conformance.sessions import CPU, SILENT, quiet_options
from ort_qdq_plugin import Reason, Report, create_session, report_of

__all__ = ["COLUMNS", "MODELS", "NETWORKS", "Inputs", "check", "false_claims", "network", "write_model"]

COLUMNS = ("model", "fused", "integer kernels", "dequantized on each run", "verdict")
_FLOAT_BYTES = 4
_ROWS = 4
_TITLE = f"# Claims of the report\n\nonnxruntime {ort.__version__}, onnx {onnx.__version__}, CPU provider."

# The networks. Each has its input `x`, and gives `y`.


def _mlp(draft: Draft) -> None:
    """Products with biases, behind which Relu and Clip come."""
    draft.input("x", [ROWS, 32])
    draft.write("h0 = MatMul(x, a) h1 = Add(h0, a_b) h2 = Relu(h1) h3 = MatMul(h2, b) h4 = Add(b_b, h3)")
    draft.write("h5 = Clip(h4, low, high) h6 = MatMul(h5, c) h7 = Relu(h6) h8 = MatMul(h7, d) y = Tanh(h8)")
    for name, shape in {"a": (32, 48), "b": (48, 32), "c": (32, 24), "d": (24, 16), "a_b": (48,), "b_b": (32,)}.items():
        draft.floats(name, shape, low=-1, high=1)
    draft.scalar("low", 0.0)
    draft.scalar("high", 6.0)


def _gemms(draft: Draft) -> None:
    """Gemms with and without biases, one of them scaled."""
    draft.input("x", [_ROWS, 32])
    draft.write("h0 = Gemm <transB = 1> (x, a, a_b) h1 = Relu(h0) h2 = Gemm(h1, b) h3 = Sigmoid(h2)")
    draft.write("y = Gemm <alpha = 0.5, transB = 1> (h3, c, c_b)")
    for name, shape in {"a": (48, 32), "b": (48, 32), "c": (24, 32), "a_b": (48,), "c_b": (24,)}.items():
        draft.floats(name, shape, low=-1, high=1)


def _convolutions(draft: Draft) -> None:
    """A classifier of pictures."""
    draft.input("x", [1, 3, 12, 12])
    draft.write(
        "h0 = Conv <pads = [1, 1, 1, 1]> (x, a, a_b) h1 = Relu(h0) h2 = Conv <group = 8> (h1, b) h3 = Clip(h2, low, high)"
    )
    draft.write("h4 = Conv(h3, c, c_b) h5 = Add(h4, h3) h6 = MaxPool <kernel_shape = [2, 2]> (h5)")
    draft.write("h7 = ConvTranspose(h6, d) h8 = GlobalAveragePool(h7) h9 = Flatten(h8) y = Gemm(h9, e, e_b)")
    shapes = {"a": (8, 3, 3, 3), "b": (8, 1, 3, 3), "c": (8, 8, 1, 1), "d": (8, 6, 2, 2), "e": (6, 10)}
    for name, shape in (shapes | {"a_b": (8,), "c_b": (8,), "e_b": (10,)}).items():
        draft.floats(name, shape, low=-1, high=1)
    draft.scalar("low", 0.0)
    draft.scalar("high", 6.0)


def _attention(draft: Draft) -> None:
    """A layer of a transformer: one activation that three products read."""
    draft.input("x", [1, _ROWS], "int64")
    draft.write("e = Gather(table, x) h = LayerNormalization(e, g, g_b)")
    for name in "qkv":
        draft.write(f"{name}0 = MatMul(h, {name}_w) {name}1 = Add({name}0, {name}_b) {name}2 = Reshape({name}1, heads)")
        draft.write(f"{name} = Transpose <perm = {'[0, 2, 3, 1]' if name == 'k' else '[0, 2, 1, 3]'}> ({name}2)")
        draft.floats(f"{name}_w", (32, 32), low=-1, high=1)
        draft.floats(f"{name}_b", (32,), low=-1, high=1)
    draft.write(
        "s0 = MatMul(q, k) s1 = Div(s0, root) s = Softmax(s1) c0 = MatMul(s, v) c1 = Transpose <perm = [0, 2, 1, 3]> (c0)"
    )
    draft.write(
        "c = Reshape(c1, joined) o = MatMul(c, o_w) r = Add(o, h) f0 = MatMul(r, f_w) f = Gelu(f0) y = MatMul(f, t_w)"
    )
    for name, shape in {
        "table": (50, 32),
        "g": (32,),
        "g_b": (32,),
        "o_w": (32, 32),
        "f_w": (32, 64),
        "t_w": (64, 32),
    }.items():
        draft.floats(name, shape, low=-1, high=1)
    draft.ints("heads", [0, 0, 4, 8])
    draft.ints("joined", [0, 0, 32])
    draft.scalar("root", 2.8)


def _recurrent(draft: Draft) -> None:
    """An LSTM, whose output is squeezed and transposed before products."""
    draft.input("x", [5, 1, 16])
    draft.nodes.append(onnx.helper.make_node("LSTM", ["x", "w", "r", "b"], ["h", "last", ""], "lstm", hidden_size=24))
    draft.write("s = Squeeze(h, one) p = MatMul(s, head) y0 = Add(p, head_b)")
    draft.write(
        "l = Squeeze(last, zero) t = Transpose <perm = [1, 0]> (side) z = MatMul(l, t) y = Concat <axis = 0> (y0, z)"
    )
    draft.nodes[1].input[1] = "axes"
    draft.ints("axes", [1, 2])
    draft.ints("zero", [0])
    shapes = {"w": (1, 96, 16), "r": (1, 96, 24), "b": (1, 192), "head": (24, 12), "head_b": (12,), "side": (12, 24)}
    for name, shape in shapes.items():
        draft.floats(name, shape, low=-1, high=1)


NETWORKS: Mapping[str, Callable[[Draft], None]] = {
    "mlp": _mlp, "gemms": _gemms, "convolutions": _convolutions, "attention": _attention, "recurrent": _recurrent,
}  # fmt: skip
"""Name -> what draws it."""


def network(name: str, opset: int = 17) -> onnx.ModelProto:
    """One of the networks, in float, with the shapes of all values."""
    draft = Draft(name, opset=20 if name == "attention" else opset)
    NETWORKS[name](draft)
    draft.output("y", None)
    return onnx.shape_inference.infer_shapes(draft.model(name))


# The quantizers


class Inputs(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """A few random inputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        (value,) = model.graph.input
        kind, rng = value.type.tensor_type, np.random.default_rng(0)
        shape = [dim.dim_value or _ROWS for dim in kind.shape.dim]
        drawn = [
            rng.integers(0, 50, shape) if kind.elem_type == onnx.TensorProto.INT64 else rng.normal(size=shape) for _ in "123"
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        self._left = iter([{value.name: np.asarray(array, dtype)} for array in drawn])

    def get_next(self) -> Any:
        """The next one; None after the last."""
        return next(self._left, None)


def _static(model: onnx.ModelProto, path: Path, types: str, **how: Any) -> None:
    activation, weight = (getattr(QuantType, name) for name in types.split())
    arguments = {"quant_format": QuantFormat.QDQ, "activation_type": activation, "weight_type": weight}
    quantize_static(model, path, Inputs(model), **(arguments | how))


def _dynamic(model: onnx.ModelProto, path: Path, **how: Any) -> None:
    quantize_dynamic(model, path, **how)


_QUANTIZERS: Mapping[str, Callable[[onnx.ModelProto, Path], None]] = {
    "u8u8": partial(_static, types="QUInt8 QUInt8"),
    "u8s8": partial(_static, types="QUInt8 QInt8"),
    "u8s8 per channel": partial(_static, types="QUInt8 QInt8", per_channel=True),
    "s8s8": partial(_static, types="QInt8 QInt8"),
    "s8s8 per channel": partial(_static, types="QInt8 QInt8", per_channel=True),
    "s8s8 asymmetric weights": partial(
        _static, types="QInt8 QInt8", extra_options={"ActivationSymmetric": True, "WeightSymmetric": False}
    ),
    "u8s8 reduced range": partial(_static, types="QUInt8 QInt8", per_channel=True, reduce_range=True),
    "u16s8": partial(_static, types="QUInt16 QInt8", per_channel=True),
    "s16s8": partial(_static, types="QInt16 QInt8", extra_options={"ActivationSymmetric": True}),
    "u8s8 products alone": partial(
        _static, types="QUInt8 QInt8", per_channel=True, op_types_to_quantize=["MatMul", "Gemm", "Conv"]
    ),
    "s8s8 products alone": partial(_static, types="QInt8 QInt8", op_types_to_quantize=["MatMul", "Gemm", "Conv"]),
    "u8s8 results not quantized": partial(
        _static, types="QUInt8 QInt8", extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm", "Conv"]}
    ),
    "s8s8 dedicated pairs": partial(_static, types="QInt8 QInt8", extra_options={"DedicatedQDQPair": True}),
    "u8s8 biases left": partial(_static, types="QUInt8 QInt8", extra_options={"QuantizeBias": False}),
    "u8s8 weights in float": partial(_static, types="QUInt8 QInt8", extra_options={"AddQDQPairToWeight": True}),
    "u8s8 blocks": partial(_static, types="QUInt8 QInt8", op_types_to_quantize=["MatMul"], extra_options={"BlockSize": 16}),
    "u8u8 blocks along N": partial(
        _static, types="QUInt8 QUInt8", per_channel=True, op_types_to_quantize=["MatMul"], extra_options={"BlockSize": 16}
    ),
    "u8s4": partial(_static, types="QUInt8 QInt4", per_channel=True, extra_options={"UseQDQContribOps": True}),
    "operators": partial(_static, types="QUInt8 QInt8", quant_format=QuantFormat.QOperator),
    "operators per channel": partial(_static, types="QInt8 QInt8", quant_format=QuantFormat.QOperator, per_channel=True),
    "dynamic": partial(_dynamic, weight_type=QuantType.QInt8),
    "dynamic per channel": partial(_dynamic, weight_type=QuantType.QUInt8, per_channel=True),
}
MODELS = {f"{of}, {how}": (of, how) for of, how in product(NETWORKS, _QUANTIZERS)}
"""Name -> network and quantizer."""


# The comparison


def false_claims(path: Path, folder: Path) -> tuple[Report, list[str]]:
    """What a session of this package says of a model, and what of that is not so in the graph that it runs.

    `folder` is for temporary files.
    """
    saved = folder / "optimized.onnx"
    options = quiet_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(saved)
    ort.InferenceSession(path, options, CPU)
    stock = Counter(node.op_type for node in _nodes(onnx.load(saved)))
    report = report_of(create_session(path, options, CPU))
    assert report is not None
    optimized = list(_nodes(onnx.load(saved)))
    model = onnx.inliner.inline_local_functions(onnx.load(path))
    elements = _dequantized(model)
    runs = Counter(_source(optimized, elements, node.input[0]) for node in optimized if node.op_type == "DequantizeLinear")
    told = Counter[str]()
    for entry in report.unfused:
        told[entry.weight] += entry.bytes_per_run
    wrong = [
        f"{name}: {told[name]} bytes are dequantized on each run, it says; {runs[name]} times {count} values are"
        for name, count in elements.items()
        if told[name] != runs[name] * count * _FLOAT_BYTES
    ]
    kinds = Counter(node.op_type for node in optimized)
    before = Counter(node.op_type for node in _nodes(model))
    wrong += [
        f"{stock[kind]} {kind}, and {kinds[kind]} are left"
        for kind in stock
        if _is_kernel(kind) and stock[kind] > kinds[kind]
    ]
    fused = sum(kinds[kind] - before[kind] for kind in ("MatMulNBits", "GatherBlockQuantized"))
    if fused != len(report.fused):
        wrong.append(f"{len(report.fused)} are fused, it says; {fused} are")
    return report, wrong


def _is_kernel(kind: str) -> bool:
    """Whether this is the type of an operator on integers."""
    return kind.startswith(("QLinear", "QGemm", "ConvInteger", "DynamicQuantizeLSTM")) or "MatMulInteger" in kind


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in graphs_of(model.graph):
        yield from graph.node


def _dequantized(model: onnx.ModelProto) -> dict[str, int]:
    """The constants that DequantizeLinear nodes read, and how many elements they have. Vectors are left out."""
    constants = {tensor.name: tensor for graph in graphs_of(model.graph) for tensor in graph.initializer}
    read = {node.input[0] for node in _nodes(model) if node.op_type == "DequantizeLinear"}
    return {name: math.prod(tensor.dims) for name, tensor in constants.items() if name in read and len(tensor.dims) > 1}


def _source(nodes: list[onnx.NodeProto], weights: Mapping[str, int], name: str) -> str:
    """The weight that a value is, maybe transposed; "" if it is none."""
    producers = {node.output[0]: node for node in nodes if node.op_type in ("Transpose", "Reshape", "Squeeze", "Unsqueeze")}
    while name not in weights and name in producers:
        name = producers[name].input[0]
    return name if name in weights else ""


def write_model(name: str, path: Path) -> None:
    """Write one of MODELS."""
    of, how = MODELS[name]
    _QUANTIZERS[how](network(of), path)


def check(name: str) -> tuple[tuple[str, ...], list[str]]:
    """A row of the table, and what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_model(name, path)
        report, wrong = false_claims(path, Path(folder))
    integers = sum(entry.reason in (Reason.INTEGER_KERNEL, Reason.FOLDED) for entry in report.unfused)
    nbytes = sum(entry.bytes_per_run for entry in report.unfused)
    return (name, str(len(report.fused)), str(integers), f"{nbytes} B", "; ".join(wrong) or "true"), wrong


def main() -> int:
    """The command line."""
    logging.getLogger().setLevel(logging.ERROR)  # the quantizers recommend and warn, and so do their sessions
    ort.set_default_logger_severity(SILENT)
    return run({name: name for name in MODELS}, check, COLUMNS, parser(__doc__).parse_args(), _TITLE)


if __name__ == "__main__":
    sys.exit(main())
