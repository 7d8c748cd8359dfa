"""What ONNX Runtime computes on integers, against the graphs that its optimizer makes of small models."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from conformance.drawing.draft import Draft
from conformance.drawing.elements import ELEMENTS, raw_tensor
from conformance.drawing.weight import PER_CHANNEL, PER_TENSOR
from conformance.sessions import CPU, quiet_options
from ort_qdq_plugin.fusion.constants import Constants
from ort_qdq_plugin.fusion.integer_kernels import OPERATORS, IntegerKernels
from ort_qdq_plugin.model.graph import model_scope
from tests.fusion.support import locate

K, N = 8, 6
INT8_KEY = "session.qdqisint8allowed"


def constant(draft: Draft, name: str, element: str, values: Any) -> str:
    """An integer constant of any shape."""
    code = ELEMENTS[element].code
    array = np.asarray(values, np.dtype(element))
    return draft.constant(raw_tensor(name, code, array.shape, array.tobytes()))


def activation_scale(draft: Draft, kind: str, zero: int) -> list[str]:
    return [draft.scalar("s", 0.03), constant(draft, "z", kind, zero)]


def optimized(model: onnx.ModelProto, folder: Path, int8: bool = False) -> list[onnx.NodeProto]:
    """The nodes of the graph that stock ONNX Runtime makes; a ValueError if it refuses the model."""
    options = quiet_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry(INT8_KEY, str(int(int8)))
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=CPU)
    except Exception as error:
        raise ValueError(str(error)) from error
    graph = onnx.load(folder / "optimized.onnx").graph
    constants = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    return [node for node in graph.node if node.op_type != "DequantizeLinear" or node.input[0] in constants]


def is_taken(model: onnx.ModelProto, folder: Path, int8: bool = False) -> bool:
    """Whether the optimizer leaves neither a DequantizeLinear of the model's only weight, nor a MatMulNBits."""
    return not {"DequantizeLinear", "MatMulNBits"} & {node.op_type for node in optimized(model, folder, int8)}


def told(model: onnx.ModelProto, name: str = "h", int8: bool = False) -> bool:
    """Whether the rules say that of the node with this output."""
    scope = model_scope(model)
    at = next(index for index, node in enumerate(scope.nodes) if node.output[0] == name)
    return IntegerKernels(Constants(locate), int8).reason((scope, at)) is not None


# The selectors, one by one


def unit(node: str, element: str) -> onnx.ModelProto:
    """`node` makes `h` of a dequantized activation `x_d` and weight `w_d`. It is quantized as they were."""
    draft = Draft("selectors")
    shape = [4, 4] if "Conv" not in node and "Pool" not in node else [1, 4, 4, 4]
    draft.input("x", shape)
    scale, zero = activation_scale(draft, "uint8", 128)
    if "x_d" not in node:
        draft.write("x_t = Tanh(x_d)")
    draft.quantized("w", element, shape)
    constant(draft, "w_z", element, 128 if element == "uint8" else 0)
    for name, values in (("zeros", [0]), ("ones", [1]), ("two", [2]), ("twos", [2, 2]), ("rows", [[0, 1], [2, 3]])):
        draft.constant(raw_tensor(name, TensorProto.INT64, np.shape(values), np.array(values, "<i8").tobytes()))
    draft.constant(raw_tensor("truth", TensorProto.BOOL, [4, 4], bytes([1, 0] * 8)))
    draft.write(f"x_q = QuantizeLinear(x, {scale}, {zero}) x_d = DequantizeLinear(x_q, {scale}, {zero})")
    draft.write(f"w_d = DequantizeLinear(w, {scale}, w_z) {node}")
    draft.write(f"y = QuantizeLinear(h, {scale}, {zero})")
    draft.output("y", None, "uint8")
    return draft.model()


# Of operators that ONNX Runtime's selectors know.
SELECTED = {
    "Conv": "h = Conv(x_d, w_d)",
    "MatMul": "h = MatMul(x_d, w_d)",
    "Gemm": "h = Gemm(x_d, w_d)",
    "Add": "h = Add(x_d, w_d)",
    "Mul": "h = Mul(x_d, w_d)",
    "Concat": "h = Concat <axis = 0> (x_d, w_d)",
    "Where": "h = Where(truth, x_d, w_d)",
    "AveragePool": "h = AveragePool <kernel_shape = [2, 2]> (w_d)",
    "GlobalAveragePool": "h = GlobalAveragePool(w_d)",
    "LeakyRelu": "h = LeakyRelu(w_d)",
    "Sigmoid": "h = Sigmoid(w_d)",
    "Softmax": "h = Softmax(w_d)",
    "Expand": "h = Expand(w_d, ones)",
    "Flatten": "h = Flatten(w_d)",
    "Gather": "h = Gather(w_d, zeros)",
    "GatherElements": "h = GatherElements(w_d, rows)",
    "Reshape": "h = Reshape(w_d, zeros)",
    "Slice": "h = Slice(w_d, zeros, two)",
    "Squeeze": "h = Squeeze(w_d)",
    "Tile": "h = Tile(w_d, twos)",
    "Transpose": "h = Transpose(w_d)",
    "Unsqueeze": "h = Unsqueeze(w_d, zeros)",
    "MaxPool": "h = MaxPool <kernel_shape = [2, 2]> (w_d)",
    "ReduceMax": "h = ReduceMax(w_d)",
    "ReduceMin": "h = ReduceMin(w_d)",
    "ArgMax": "i = ArgMax(w_d) h = Cast <to = 1> (i)",
}
# Of others, which quantizers quantize around all the same.
OTHERS = (
    "h = ConvTranspose(x_d, w_d)", "h = Sub(x_d, w_d)", "h = Div(x_d, w_d)", "h = Pow(x_d, w_d)", "h = Max(x_d, w_d)",
    "h = Min(x_d, w_d)", "h = PRelu(x_d, w_d)", 'h = Einsum <equation = "ij,jk->ik"> (x_d, w_d)', "h = Tanh(w_d)",
    "h = Relu(w_d)", "h = ReduceMean(w_d)", "h = ReduceSum(w_d)", "h = LpNormalization(w_d)", "h = Exp(w_d)", "h = Erf(w_d)",
    "h = HardSigmoid(w_d)", "h = CumSum(w_d, zeros)", "h = GatherND(w_d, rows)", "h = Elu(w_d)", "h = Gelu(w_d)",
)  # fmt: skip


def test_every_selector_is_shown() -> None:
    assert SELECTED.keys() == OPERATORS.keys()


@pytest.mark.parametrize("element", ["uint8", "int8"])
@pytest.mark.parametrize("node", [*SELECTED.values(), *OTHERS])
def test_selectors(node: str, element: str, tmp_path: Path) -> None:
    """A new release that computes other operators on integers fails here, as does one that no longer does."""
    model = unit(node, element)
    name = "i" if "ArgMax" in node else "h"
    assert told(model, name) == is_taken(model, tmp_path)
    if node in SELECTED.values() and element == "uint8":
        assert told(model, name)


# Products, and what stands around them

# The activation's integers; "given": they are the model's input; "bare": there is no zero point.
ACTIVATIONS = ("uint8", "int8", "uint16", "uint8 given", "int8 given", "uint8 bare")
# The activation's shape, and what makes `v` of it, which is multiplied.
BEFORE: dict[str, tuple[tuple[int, ...], str]] = {
    "vector": ((K,), "v = Identity(x_d)"),
    "matrix": ((5, K), "v = Identity(x_d)"),
    "stack": ((2, 5, K), "i = Identity(x_d) v = Identity(i)"),
    "Transpose": ((K, 5), "v = Transpose <perm = [1, 0]> (x_d)"),
    "Squeeze": ((1, 5, K), "v = Squeeze(x_d, first)"),
    "Reshape": ((2, 5, K), "v = Reshape(x_d, flat)"),
    "Slice": ((5, K), "v = Slice(x_d, first, third)"),
    "Flatten": ((5, K), "v = Flatten(x_d)"),
    "two": ((1, K, 5), "t = Squeeze(x_d, first) v = Transpose(t)"),
}
BIASES = ("", "int32", "int32 of another scale", "int32 with a zero point", "int32 with zero", "float", "float row", "int8")
# What is made of the product `h`; `Q(v)` quantizes `v` and dequantizes it again.
AFTER = (
    "", "y = Tanh(h)", "Q(h)", "t = Transpose(h) Q(t)", "f = Flatten(h) Q(f)", "r = Relu(h) Q(r)", "y = Relu(h)",
    "r = Relu(h) y = Tanh(r)", "r = Clip(h, low, high) Q(r)", "r = Clip(h, low, low) Q(r)", "t = Tanh(h) Q(h)",
    "b_q = QuantizeLinear(h, s2, o) b = DequantizeLinear(b_q, s2, o) Q(h)", "y = Add(h, row)", "a = Add(row, h) Q(a)",
    "a = Add(row, h) r = Relu(a) Q(r)", "a = Add(wide, h) Q(a)", "y = Add(h, x_t)", "Q(h) a = Tanh(y) b = Exp(y)",
    "a = Add(row, h) r = Reshape(a, flat2) Q(r)", "r = Relu(h) a = Tanh(r) b = Exp(r)",
)  # fmt: skip


def product(
    kind: str, activation: str, before: str, after: str, bias: str, weight: str, block: int, zero: bool, view: str,
    low: int, result: str, other_reader: bool, opset: int,
) -> onnx.ModelProto:  # fmt: skip
    """`h` is a product of a dequantized activation and a dequantized weight."""
    draft, (shape, moves) = Draft("products", opset=opset), BEFORE[before]
    element, *how = activation.split()
    if kind == "Conv":
        shape, moves = (1, K, 4, 4), "v = Identity(x_d)"
    draft.scalar("s", 0.03)
    draft.scalar("s2", 0.05)
    draft.scalar("low", 0.0)
    draft.scalar("high", 100.0)
    for name, ints in (("first", [0]), ("third", [3]), ("flat", [-1, K]), ("flat2", [-1, N])):
        draft.ints(name, ints)
    zero_point = [] if how == ["bare"] else [constant(draft, "z", element, 100)]
    constant(draft, "o", result, low)
    x = draft.input("x", shape, element if how == ["given"] else "float")
    if how != ["given"]:
        x = draft.node("QuantizeLinear", [x, "s", *zero_point], "x_q")
    draft.node("DequantizeLinear", [x, "s", *zero_point], "x_d")
    draft.write(f"x_t = Tanh(x_d) {moves}" if other_reader or "x_t" in after else moves)
    stored: tuple[int, ...] = (N, K, 3, 3) if kind == "Conv" else (K, N) if kind == "MatMul" else (N, K)
    channels = int((kind == "MatMul") != bool(view))
    draft.dequantize(
        "w", stored[::-1] if view else stored, element=weight, zero="default" if zero else "none", block=block,
        axis=channels if block <= 0 else 1 - channels,
    )  # fmt: skip
    if view:
        draft.write("t_w = Transpose <perm = [1, 0]> (w_d)" if view == "perm" else "t_w = Transpose(w_d)")
    operands = ["v", "t_w" if view else "w_d"]
    if bias.startswith("int"):
        scales = draft.initializers[[tensor.name for tensor in draft.initializers].index("w_s")]
        factor = np.float32(1.0 if "another" in bias else 0.03)
        values = np.frombuffer(scales.raw_data, np.float32) * factor
        draft.quantized("b", bias.split()[0], [N])
        draft.constant(raw_tensor("b_s", TensorProto.FLOAT, scales.dims, values.tobytes()))
        if "zero" in bias:
            zeros = [int("a zero" in bias)] * int(np.prod(scales.dims))
            draft.constant(onnx.helper.make_tensor("b_z", TensorProto.INT32, scales.dims, zeros))
        draft.node("DequantizeLinear", ["b", "b_s", *["b_z"] * ("zero" in bias)], "b_d", axis=0)
    elif bias:
        draft.floats("b_d", [1, N] if bias == "float row" else [N])
    draft.floats("row", [N])
    draft.floats("wide", [1, N])
    transposed = "<transB = 1>" if kind == "Gemm" else ""
    draft.write(f"h = {kind} {transposed} ({', '.join([*operands, *['b_d'] * bool(bias)])})")
    quantized = re.sub(r"Q\((\w)\)", r"y_q = QuantizeLinear(\1, s, o) y = DequantizeLinear(y_q, s, o)", after)
    draft.write(quantized)
    read = {name for node in draft.nodes for name in node.input}
    for node in draft.nodes:
        if node.output[0] not in read:
            draft.output(node.output[0], None)
    return draft.model()


def hows() -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of `product`."""
    drawn = st.fixed_dictionaries({
        "kind": st.sampled_from(["MatMul", "Gemm", "Conv"]), "activation": st.sampled_from(ACTIVATIONS),
        "before": st.sampled_from([*BEFORE]), "after": st.sampled_from(AFTER), "bias": st.sampled_from(BIASES),
        "weight": st.sampled_from(["uint8", "int8"]), "zero": st.booleans(),
        "block": st.sampled_from([PER_CHANNEL, PER_CHANNEL, PER_TENSOR, PER_TENSOR, 4, 16]),  # 16 are longer than K
        "view": st.sampled_from(["", "perm", "none"]), "low": st.sampled_from([0, 100]), "other_reader": st.booleans(),
        "result": st.sampled_from(["uint8", "int8", "uint16"]), "opset": st.sampled_from([13, 19, 21]),
    })  # fmt: skip
    lacking: dict[Any, str] = {"MatMul": "bias", "Conv": "view"}
    return drawn.map(lambda how: {key: "" if lacking.get(how["kind"]) == key else value for key, value in how.items()})


@settings(max_examples=300, deadline=None)
@given(hows(), st.booleans())
def test_products(tmp_path_factory: pytest.TempPathFactory, how: dict[str, Any], int8: bool) -> None:
    model = product(**how)
    try:
        taken = is_taken(model, tmp_path_factory.mktemp("optimized"), int8)
    except ValueError:
        return  # int8 behind a Transpose of opset 21, and shapes that do not fit
    assert told(model, int8=int8) == taken
