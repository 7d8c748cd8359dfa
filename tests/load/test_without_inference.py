"""Operators in front of a product whose bias a node of its own adds: ONNX's inference is not needed to decide."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.parser import parse_model

from ort_qdq_plugin import inspect
from ort_qdq_plugin.model import followed as following
from ort_qdq_plugin.model import graph
from ort_qdq_plugin.model.shapes import inferred_graph

K, N = 16, 8  # the product's weight

# The nodes that make f, of the input x, whose last axis has K elements; opset 21.
CASES = {
    "Conv": "float[b, 4, n] x|a = Conv <pads = [1, 1]> (x, kernel)  f = Transpose <perm = [0, 2, 1]> (a)",
    "ConvTranspose": "float[b, 16, n] x|a = ConvTranspose (x, turned)  f = Transpose <perm = [0, 2, 1]> (a)",
    "MaxPool": "float[b, n, 32] x|f = MaxPool <kernel_shape = [2], strides = [2]> (x)",
    "AveragePool": "float[b, n, 32] x|f = AveragePool <kernel_shape = [2], strides = [2]> (x)",
    "LpPool": "float[b, n, 32] x|f = LpPool <kernel_shape = [2], strides = [2]> (x)",
    "GlobalAveragePool": "float[b, 16, h, w] x|a = GlobalAveragePool (x)  f = Flatten (a)",
    "GlobalMaxPool": "float[b, 16, h, w] x|a = GlobalMaxPool (x)  f = Squeeze (a, last)",
    "LSTM": "float[t, b, 4] x|a, l, c = LSTM <hidden_size = 16> (x, lw, lr)  f = Squeeze (a, one)",
    "GRU": "float[t, b, 4] x|a = GRU <hidden_size = 16> (x, gw, gr)  f = Squeeze (a, one)",
    "RNN": "float[t, b, 4] x|a, f = RNN <hidden_size = 16> (x, rw, rr)",
    "Resize": 'float[b, c, n, 8] x|f = Resize <mode = "nearest"> (x, , scales)',
    "Pad": "float[b, n, 14] x|f = Pad (x, pads)",
    "Split": "float[b, n, 32] x|a, f = Split <axis = -1, num_outputs = 2> (x)",
    "Slice": "float[b, n, 20] x|f = Slice (x, four, twenty, last_axis)",
    "Expand": "float[b, n, 16] x|f = Expand (x, ones)",
    "Tile": "float[b, n, 8] x|f = Tile (x, twice)",
    "ReduceMean": "float[b, n, m, 16] x|f = ReduceMean <keepdims = 0> (x, one)",
    "ReduceSum": "float[n, m, 16] x|f = ReduceSum <keepdims = 0> (x, one)",
    "ArgMax": "float[n, m, 16] x|a = ArgMax <axis = 0> (x)  f = Cast <to = 1> (a)",
    "TopK": "float[n, m, 99] x|f, i = TopK (x, sixteen)",
    "OneHot": "int64[n, m] x|f = OneHot (x, sixteen, values)",
    "BatchNormalization": "float[n, 16] x|f = BatchNormalization (x, k, k, k, k)",
    "InstanceNormalization": "float[b, 4, 16] x|f = InstanceNormalization (x, four_k, four_k)",
    "GroupNormalization": "float[b, 4, 16] x|f = GroupNormalization <num_groups = 2> (x, four_k, four_k)",
    "LayerNormalization": "float[b, n, 16] x|f = LayerNormalization (x, k)",
    "DynamicQuantizeLinear": """float[b, n, 16] x|a, e, z = DynamicQuantizeLinear (x)
        e1 = Cast <to = 1> (a)  f = Mul (e1, e)""",
    "MatMulInteger": "uint8[b, n, 4] x|a = MatMulInteger (x, bytes)  f = Cast <to = 1> (a)",
    "Einsum": 'float[b, n, 4] x|f = Einsum <equation = "bij,jk->bik"> (x, square)',
    "Gather": "int64[b, n] x|f = Gather (table, x)",
    "Reshape": "float[b, n, 4, 4] x|f = Reshape (x, rows)",
    "computed Reshape": """float[b, n, 16] x|a = Shape (x)  b0 = Gather <axis = 0> (a, zero)  b1 = Unsqueeze (b0, first)
        c = Concat <axis = 0> (b1, rest)  f = Reshape (x, c)""",
    "If": """float[b, n, 16] x|l = ReduceMax <keepdims = 0> (x)  c = Cast <to = 9> (l)
        f = If (c) <then_branch = t () => (float[] u) { u = Relu (x) }, else_branch = o () => (float[] v) { v = Neg (x) }
        >""",
    "Loop": """float[b, n, 16] x|on = Constant <value = bool {1}> ()  o, f = Loop (three, on, x) <
        body = body (int64 i, bool go, float[] s) => (bool stay, float[] next, float[] given) {
            stay = Identity (go)  next = Identity (s)  given = Relu (x) }>""",
    "Scan": """float[b, n, 16] x|o, f = Scan (table, x) <num_scan_inputs = 1,
        body = body (float[] s, float[] e) => (float[] next, float[] given) { next = Identity (s)  given = Relu (e) }>""",
    "inside If": """float[b, 16] x|l = ReduceMax <keepdims = 0> (x)  c = Cast <to = 9> (l)  a = Relu (x)
        f = If (c) <then_branch = t () => (float[] u) { u1 = Neg (a)  d1 = DequantizeLinear <axis = 1> (q2, s2)
        m1 = MatMul (u1, d1)  u = Add (m1, k) }, else_branch = e () => (float[] v) { v = Neg (a) }>""",
}
# What ONNX's inference knows nothing of.
OF_ONNX_RUNTIME = {
    "Attention": "float[b, n, 16] x|f = com.microsoft.Attention <num_heads = 2> (x, qkv, qkv_bias)",
    "MultiHeadAttention": "float[b, n, 16] x|f = com.microsoft.MultiHeadAttention <num_heads = 2> (x, x, x)",
    "SkipLayerNormalization": "float[b, n, 16] x|f = com.microsoft.SkipLayerNormalization (x, x, k)",
    "BiasGelu": "float[b, n, 16] x|f = com.microsoft.BiasGelu (x, k)",
    "FastGelu": "float[b, n, 16] x|f = com.microsoft.FastGelu (x)",
    "one that is not followed": "float[b, n, 16] x|a = com.microsoft.Trilu (x)  f = Relu (a)",
}
CONSTANTS: dict[str, tuple[str, Any]] = {
    "kernel": ("float32", np.ones((16, 4, 3))), "turned": ("float32", np.ones((16, 16, 3))), "last": ("int64", [2, 3]),
    "one": ("int64", [1]), "lw": ("float32", np.ones((1, 64, 4))), "lr": ("float32", np.ones((1, 64, 16))),
    "gw": ("float32", np.ones((1, 48, 4))), "gr": ("float32", np.ones((1, 48, 16))), "rw": ("float32", np.ones((1, 16, 4))),
    "rr": ("float32", np.ones((1, 16, 16))), "scales": ("float32", [1, 1, 1, 2]), "pads": ("int64", [0, 0, 1, 0, 0, 1]),
    "four": ("int64", [4]), "twenty": ("int64", [20]), "last_axis": ("int64", [-1]), "ones": ("int64", [1, 1, 1]),
    "twice": ("int64", [1, 1, 2]), "sixteen": ("int64", [16]), "values": ("float32", [0, 1]), "k": ("float32", np.ones(16)),
    "four_k": ("float32", np.ones(4)), "bytes": ("uint8", np.ones((4, 16))), "square": ("float32", np.ones((4, 16))),
    "table": ("float32", np.ones((9, 16))), "rows": ("int64", [0, -1, 16]), "zero": ("int64", 0), "first": ("int64", [0]),
    "rest": ("int64", [-1, 16]), "three": ("int64", 3), "q2": ("int8", np.ones((16, 16))), "s2": ("float32", np.ones(16)),
    "sc": ("float32", 0.1), "zp": ("uint8", 1), "bytes1": ("uint8", np.ones((16, 16, 1))),
    "qkv": ("float32", np.ones((16, 48))), "qkv_bias": ("float32", np.ones(48)),
}  # fmt: skip


def inside(main: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [main]
    for node in main.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += inside(attribute.g)
    return found


def model_of(case: str) -> onnx.ModelProto:
    """A biased product behind the nodes of a case."""
    given, _, nodes = ({**CASES, **OF_ONNX_RUNTIME})[case].partition("|")
    model = parse_model(f"""<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
    g ({given}) => (float[] y) {{ {nodes} d = DequantizeLinear <axis = 1> (q, s)  m = MatMul (f, d)  y = Add (m, bias) }}""")
    read = {name for graph in inside(model.graph) for node in graph.node for name in node.input}
    constants = {**CONSTANTS, "q": ("int8", np.ones((K, N))), "s": ("float32", np.ones(N)), "bias": ("float32", np.ones(N))}
    for name, (dtype, value) in constants.items():
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
    return model


LOADS = """
import sys
from pathlib import Path
from ort_qdq_plugin import create_session, report_of
for path in sorted(Path(sys.argv[1]).iterdir()):
    report = report_of(create_session(str(path)))
    assert report.fused, (path, report)
    assert "onnx.shape_inference" not in sys.modules, path
print("loaded")
"""


def test_loading_does_not_import_the_inference(tmp_path: Path) -> None:
    for number, case in enumerate((*CASES, *OF_ONNX_RUNTIME)):
        (tmp_path / f"{number} {case}.onnx").write_bytes(model_of(case).SerializeToString())
    done = subprocess.run([sys.executable, "-c", LOADS, str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.stdout.split() == ["loaded"], done.stderr


@pytest.mark.parametrize("case", CASES)
def test_what_is_fused_is_the_same_as_with_the_inference(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = model_of(case).SerializeToString(), list[onnx.ModelProto]()

    def infer(model: onnx.ModelProto) -> onnx.GraphProto | None:
        asked.append(model)
        return inferred_graph(model)

    followed = inspect(data)
    monkeypatch.setattr(following, "followed_shapes", lambda main, *_, **__: [{} for _ in inside(main)])
    monkeypatch.setattr(graph, "inferred_graph", infer)
    inferred = inspect(data)
    assert asked
    assert followed.fused
    assert (followed.fused, followed.unfused) == (inferred.fused, inferred.unfused)
